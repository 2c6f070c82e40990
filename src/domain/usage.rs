//! Token counts that a model server reports at the end of an answer.

/// Counts of one answer; what the server did not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt (`prompt_tokens`, `input_tokens`).
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that came from the prefix cache (`cached_tokens`, `cache_read_input_tokens`).
    pub cached_tokens: Option<u64>,
    /// Tokens generated (`completion_tokens`, `output_tokens`).
    pub completion_tokens: Option<u64>,
}

impl Usage {
    /// Takes over every count that `later` has.
    pub fn merge(&mut self, later: Usage) {
        self.prompt_tokens = later.prompt_tokens.or(self.prompt_tokens);
        self.cached_tokens = later.cached_tokens.or(self.cached_tokens);
        self.completion_tokens = later.completion_tokens.or(self.completion_tokens);
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
