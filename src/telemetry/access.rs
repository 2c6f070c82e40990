//! The access log: one line per request, written when it has ended.

use std::time::Duration;

use crate::domain::{Outcome, Rejection, Usage};

/// What is worth knowing about a request afterwards. What is not known stays out of the line.
#[derive(Clone, Copy, Debug)]
pub struct AccessLine<'a> {
    /// `x-request-id`.
    pub request_id: &'a str,
    /// HTTP method.
    pub method: Option<&'a str>,
    /// Path without query.
    pub path: &'a str,
    /// Model that the client named.
    pub model: &'a str,
    /// Model that the server was given.
    pub target_model: &'a str,
    /// Name of the objective asked for.
    pub objective: Option<&'a str>,
    /// Flow that fairness is kept for.
    pub fairness_id: &'a str,
    /// Priority.
    pub priority: i32,
    /// Chosen endpoint, as in the destination header.
    pub endpoint: Option<&'a str>,
    /// Endpoint that the data plane said it used, where that differs or is all we know.
    pub served_by: Option<&'a str>,
    /// HTTP status that the client saw, as far as we know.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request headers to the end.
    pub total: Duration,
    /// Time of the scheduling decision.
    pub decision: Option<Duration>,
    /// From the request headers to the first bytes of the response body.
    pub ttft: Option<Duration>,
    /// Bytes of the request body.
    pub request_bytes: u64,
    /// Bytes of the response body.
    pub response_bytes: u64,
    /// What the model server counted.
    pub usage: Usage,
    /// Why it was refused, if it was.
    pub rejection: Option<&'a Rejection>,
    /// Prompt tokens that the chosen endpoint was believed to hold; compare with `cachedTokens`.
    pub predicted_cached_tokens: Option<u64>,
}

impl AccessLine<'_> {
    /// Writes the line: an info event `request` of target `pointsman::request`.
    pub fn emit(&self) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let millis = |d: Duration| micros(d) as f64 / 1000.0;
        tracing::info!(
            target: "pointsman::request",
            {
            "x-request-id" = self.request_id,
            method = self.method,
            path = self.path,
            objectiveKey = self.objective,
            incomingModelName = Some(self.model).filter(|m| !m.is_empty()),
            targetModelName = Some(self.target_model).filter(|m| !m.is_empty()),
            fairnessID = self.fairness_id,
            priority = self.priority,
            endpoint = self.endpoint,
            servedBy = self.served_by,
            status = self.status,
            outcome = self.outcome.as_str(),
            durationMs = millis(self.total),
            decisionUs = self.decision.map(micros),
            ttftMs = self.ttft.map(millis),
            requestBytes = self.request_bytes,
            responseBytes = self.response_bytes,
            promptTokens = self.usage.prompt_tokens,
            cachedTokens = self.usage.cached_tokens,
            completionTokens = self.usage.completion_tokens,
            predictedCachedTokens = self.predicted_cached_tokens,
            rejection = self.rejection.map(Rejection::code),
            reason = self.rejection.and_then(Rejection::reason).map(|r| r.as_str()),
            error = self.rejection.map(tracing::field::display)
            },
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::telemetry::log::LogOptions;
    use crate::telemetry::log::tests::lines;

    fn logged(line: &AccessLine<'_>) -> Value {
        let all = lines(LogOptions::default(), |_| line.emit());
        assert_eq!(all.len(), 1);
        let mut value: Value = serde_json::from_str(&all[0]).unwrap();
        let object = value.as_object_mut().unwrap();
        object.remove("ts");
        object.remove("caller");
        value
    }

    #[test]
    fn a_completed_request_says_everything() {
        let line = AccessLine {
            request_id: "7f",
            method: Some("POST"),
            path: "/v1/completions",
            model: "llama",
            target_model: "llama-v2",
            objective: Some("chat"),
            fairness_id: "team-a",
            priority: 3,
            endpoint: Some("10.0.0.1:8000"),
            served_by: None,
            status: Some(200),
            outcome: Outcome::Completed,
            total: Duration::from_micros(1_500_250),
            decision: Some(Duration::from_micros(42)),
            ttft: Some(Duration::from_millis(90)),
            request_bytes: 4000,
            response_bytes: 900,
            usage: Usage { prompt_tokens: Some(1000), cached_tokens: Some(960), completion_tokens: Some(50) },
            rejection: None,
            predicted_cached_tokens: Some(944),
        };
        let expected = json!({
            "level": "info", "msg": "request", "x-request-id": "7f", "method": "POST", "path": "/v1/completions",
            "objectiveKey": "chat", "incomingModelName": "llama", "targetModelName": "llama-v2",
            "fairnessID": "team-a", "priority": 3, "endpoint": "10.0.0.1:8000", "status": 200,
            "outcome": "completed", "durationMs": 1500.25, "decisionUs": 42, "ttftMs": 90, "requestBytes": 4000,
            "responseBytes": 900, "promptTokens": 1000, "cachedTokens": 960, "completionTokens": 50,
            "predictedCachedTokens": 944,
        });
        assert_eq!(logged(&line), expected);

        let rejection = Rejection::no_endpoints();
        let refused = AccessLine {
            endpoint: None,
            status: Some(503),
            outcome: Outcome::Rejected,
            rejection: Some(&rejection),
            decision: None,
            ttft: None,
            usage: Usage::default(),
            predicted_cached_tokens: None,
            ..line
        };
        let value = logged(&refused);
        assert_eq!(value["rejection"], "ServiceUnavailable");
        assert_eq!(value["reason"], "rejected-no-endpoints");
        assert!(value["error"].as_str().unwrap().contains("endpoint candidates"));
        assert!(
            value.get("ttftMs").is_none() && value.get("endpoint").is_none() && value.get("promptTokens").is_none()
        );
    }
}
