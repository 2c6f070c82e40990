//! Traffic without a trace: conversations over shared system prompts, described by a few numbers.
//!
//! Sessions begin at random (Poisson). Each begins with one of [`Shape::prompts`] system prompts, chosen with
//! Zipf's law, and has a number of turns (geometric). A turn adds tokens of its own to all that was said before;
//! the answer, and a time to think, come between it and the next. Lengths are spread log-normally around their
//! mean. The presets are corners of that space:
//!
//! | preset | what it is |
//! |---|---|
//! | `sessions` | conversations of six turns over twenty system prompts |
//! | `shared` | short questions below a few long system prompts |
//! | `tools` | tool calls: two hot prompts, little of their own, answers of a few tokens |
//! | `zipf` | questions about a thousand documents, some of them hot |
//! | `unique` | every prompt is new: nothing can be reused |

use super::{Dense, MAX_BLOCKS, MAX_REQUESTS, MAX_TOKENS, Request, Trace};

/// Numbers that describe generated traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Length in seconds.
    pub seconds: f64,
    /// Requests per second.
    pub rate: f64,
    /// Different system prompts; 0 is none.
    pub prompts: u32,
    /// Mean tokens of a system prompt.
    pub prompt_tokens: f64,
    /// Exponent of the popularity of system prompts; 0 is all alike.
    pub zipf: f64,
    /// Mean turns of a session.
    pub turns: f64,
    /// Mean tokens that a turn adds.
    pub turn_tokens: f64,
    /// Mean tokens of an answer.
    pub output_tokens: f64,
    /// Mean seconds between an answer and the next turn.
    pub think: f64,
    /// Standard deviation of the logarithm of lengths.
    pub spread: f64,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Seed.
    pub seed: u64,
}

/// Names of the presets.
pub const PRESETS: [&str; 5] = ["sessions", "shared", "tools", "zipf", "unique"];

impl Shape {
    /// The preset called `name`.
    pub fn preset(name: &str) -> Option<Self> {
        let sessions = Self {
            seconds: 3600.0,
            rate: 3.0,
            prompts: 20,
            prompt_tokens: 2_000.0,
            zipf: 1.0,
            turns: 6.0,
            turn_tokens: 1_500.0,
            output_tokens: 300.0,
            think: 30.0,
            spread: 0.8,
            block_tokens: 512,
            seed: 1,
        };
        Some(match name {
            "sessions" => sessions,
            "shared" => {
                Self { rate: 8.0, prompts: 8, prompt_tokens: 6_000.0, turns: 1.0, turn_tokens: 600.0, ..sessions }
            }
            "tools" => Self {
                rate: 10.0,
                prompts: 2,
                prompt_tokens: 5_000.0,
                turns: 1.0,
                turn_tokens: 900.0,
                output_tokens: 8.0,
                ..sessions
            },
            "zipf" => Self {
                prompts: 1_000,
                prompt_tokens: 10_000.0,
                turns: 1.0,
                turn_tokens: 300.0,
                output_tokens: 200.0,
                ..sessions
            },
            "unique" => Self { prompts: 0, turns: 1.0, turn_tokens: 10_000.0, ..sessions },
            _ => return None,
        })
    }

    /// Reads `PRESET[,key=value…]`.
    ///
    /// # Errors
    /// An unknown preset or key, a value out of its range.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut shape = Self::preset(name)
            .ok_or_else(|| format!("`{name}` is no preset of --generate (known: {})", PRESETS.join(", ")))?;
        for part in parts.filter(|p| !p.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` in --generate is not `key=value`"))?;
            let number: f64 = value.trim().parse().map_err(|_| format!("`{value}` in --generate is not a number"))?;
            shape.set(key.trim(), number)?;
        }
        if shape.rate * shape.seconds > MAX_REQUESTS as f64 {
            return Err(format!("--generate: more than {MAX_REQUESTS} requests; lower `rate` or `seconds`"));
        }
        Ok(shape)
    }

    fn set(&mut self, key: &str, value: f64) -> Result<(), String> {
        let most = f64::from(MAX_TOKENS) / 8.0;
        let (place, least, most) = match key {
            "seconds" => (&mut self.seconds, 1.0, 1e7),
            "rate" => (&mut self.rate, 1e-3, 1e5),
            "prompt-tokens" => (&mut self.prompt_tokens, 0.0, most),
            "zipf" => (&mut self.zipf, 0.0, 5.0),
            "turns" => (&mut self.turns, 1.0, 1e3),
            "turn-tokens" => (&mut self.turn_tokens, 1.0, most),
            "output-tokens" => (&mut self.output_tokens, 1.0, most),
            "think" => (&mut self.think, 0.0, 1e5),
            "spread" => (&mut self.spread, 0.0, 3.0),
            "prompts" | "block-tokens" | "seed" => {
                let (least, most) = match key {
                    "prompts" => (0.0, 1e5),
                    "block-tokens" => (1.0, 1e5),
                    _ => (0.0, 1e15),
                };
                if !(least..=most).contains(&value) || value.fract() != 0.0 {
                    return Err(format!("--generate: `{key}={value}` must be a whole number from {least} to {most}"));
                }
                match key {
                    "prompts" => self.prompts = value as u32,
                    "block-tokens" => self.block_tokens = value as u32,
                    _ => self.seed = value as u64,
                }
                return Ok(());
            }
            _ => {
                return Err(format!(
                    "--generate: `{key}` is unknown (known: seconds, rate, prompts, prompt-tokens, zipf, turns, \
                     turn-tokens, output-tokens, think, spread, block-tokens, seed)"
                ));
            }
        };
        if !(least..=most).contains(&value) {
            return Err(format!("--generate: `{key}={value}` must be from {least} to {most}"));
        }
        *place = value;
        Ok(())
    }
}

/// Traffic of `shape`.
pub fn generate(shape: &Shape) -> Trace {
    let mut rng = fastrand::Rng::with_seed(shape.seed);
    let mut dense = Dense::default();
    let mut trace = Trace { block_tokens: shape.block_tokens, ..Trace::default() };
    let popularity = cumulated(shape.prompts, shape.zipf);
    let system: Vec<u32> =
        (0..shape.prompts).map(|_| around(&mut rng, shape.prompt_tokens, shape.spread / 2.0)).collect();
    let longest = f64::from(MAX_TOKENS / 2);
    let per_session = shape.rate / shape.turns;
    // Sessions that began before the trace does: without them it would begin too quietly.
    let mut begin = -shape.turns * (shape.think + shape.output_tokens * 0.02) * 2.0;
    let mut session = 0u64;
    loop {
        begin += exponential(&mut rng, 1.0 / per_session);
        if begin > shape.seconds || trace.requests.len() >= MAX_REQUESTS {
            break;
        }
        session += 1;
        let prompt = pick(&popularity, rng.f64());
        let shared = prompt.map_or(0, |p| system[p]);
        let (mut at, mut length) = (begin, f64::from(shared));
        loop {
            length += f64::from(around(&mut rng, shape.turn_tokens, shape.spread));
            if at > shape.seconds || length > longest || trace.requests.len() >= MAX_REQUESTS {
                break;
            }
            let output = around(&mut rng, shape.output_tokens, shape.spread);
            if at >= 0.0 {
                let input = length as u32;
                let blocks = input.div_ceil(shape.block_tokens);
                let offset = trace.ids.len();
                if offset + blocks as usize > MAX_BLOCKS {
                    break;
                }
                trace.ids.extend((0..blocks).map(|k| {
                    // A block that the system prompt fills is shared, one that it only begins is not.
                    let is_shared = (k + 1) * shape.block_tokens <= shared;
                    let of = if is_shared { prompt.map_or(0, |p| p as u64) << 1 } else { session << 1 | 1 };
                    dense.id(of << 24 | u64::from(k))
                }));
                trace.requests.push(Request { at, input, output, offset, blocks, generated: (0, 0) });
            }
            if rng.f64() * shape.turns < 1.0 {
                break;
            }
            length += f64::from(output);
            at += f64::from(output) * 0.02 + exponential(&mut rng, shape.think);
        }
    }
    trace.distinct = dense.len();
    trace.finish()
}

/// The first of the cumulated shares that is above `at`.
fn pick(cumulated: &[f64], at: f64) -> Option<usize> {
    (!cumulated.is_empty()).then(|| cumulated.partition_point(|share| *share <= at).min(cumulated.len() - 1))
}

/// Zipf's law: the n-th is asked for `n^-exponent` times as often as the first.
fn cumulated(count: u32, exponent: f64) -> Vec<f64> {
    let weights: Vec<f64> = (1..=count).map(|n| f64::from(n).powf(-exponent)).collect();
    let total: f64 = weights.iter().sum();
    weights
        .iter()
        .scan(0.0, |sum, w| {
            *sum += w / total;
            Some(*sum)
        })
        .collect()
}

fn exponential(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    -(1.0 - rng.f64()).ln() * mean
}

/// A log-normal length with this mean, at least 1.
fn around(rng: &mut fastrand::Rng, mean: f64, spread: f64) -> u32 {
    // Two uniform numbers give a normal one (Box and Muller).
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
    let length = mean * (spread * normal - spread * spread / 2.0).exp();
    length.clamp(1.0, f64::from(MAX_TOKENS / 2)) as u32
}
