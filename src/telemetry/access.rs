//! The access log: one line per request, written when it has ended.

use std::cell::RefCell;
use std::time::Duration;

use super::log::{MAX_LINE_BYTES, MAX_VALUE_BYTES, TRUNCATED, escape};
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
    /// Time for which it was held before it was sent.
    pub held: Option<Duration>,
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

thread_local! {
    static FIELDS: RefCell<String> = const { RefCell::new(String::new()) };
}

impl AccessLine<'_> {
    /// Writes the line: an info event `request` of target `pointsman::request`.
    ///
    /// Its fields are put together here, as they will stand in the line, and go through the logger as one: two dozen
    /// fields that a logger visits one by one, each through a formatter, cost more than the decision.
    pub fn emit(&self) {
        if !tracing::enabled!(target: "pointsman::request", tracing::Level::INFO) {
            return;
        }
        FIELDS.with_borrow_mut(|fields| {
            fields.clear();
            self.write(&mut Json(fields));
            // The key is known to the logger, see `log::line`.
            tracing::info!(target: "pointsman::request", { "ready-made fields" = fields.as_str() }, "request");
        });
    }

    fn write(&self, line: &mut Json<'_>) {
        let named = |model| Some(model).filter(|model: &&str| !model.is_empty());
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        line.text("x-request-id", Some(self.request_id));
        line.text("method", self.method);
        line.text("path", Some(self.path));
        line.text("objectiveKey", self.objective);
        line.text("incomingModelName", named(self.model));
        line.text("targetModelName", named(self.target_model));
        line.text("fairnessID", Some(self.fairness_id));
        line.signed("priority", self.priority);
        line.text("endpoint", self.endpoint);
        line.text("servedBy", self.served_by);
        line.number("status", self.status.map(u64::from));
        line.text("outcome", Some(self.outcome.as_str()));
        line.millis("durationMs", Some(micros(self.total)));
        line.number("decisionUs", self.decision.map(micros));
        line.millis("heldMs", self.held.map(micros));
        line.millis("ttftMs", self.ttft.map(micros));
        line.number("requestBytes", Some(self.request_bytes));
        line.number("responseBytes", Some(self.response_bytes));
        line.number("promptTokens", self.usage.prompt_tokens);
        line.number("cachedTokens", self.usage.cached_tokens);
        line.number("completionTokens", self.usage.completion_tokens);
        line.number("predictedCachedTokens", self.predicted_cached_tokens);
        if let Some(rejection) = self.rejection {
            line.text("rejection", Some(rejection.code()));
            line.text("reason", rejection.reason().map(|reason| reason.as_str()));
            line.text("error", Some(&rejection.to_string()));
        }
    }
}

/// Appends fields as `,"key":value`; what is not known stays out.
struct Json<'a>(&'a mut String);

impl Json<'_> {
    /// Starts a field; `false` if the line takes no more.
    fn key(&mut self, key: &str) -> bool {
        if self.0.len() > MAX_LINE_BYTES {
            if !self.0.ends_with(TRUNCATED) {
                self.0.push_str(TRUNCATED);
            }
            return false;
        }
        self.0.push_str(",\"");
        self.0.push_str(key);
        self.0.push_str("\":");
        true
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value
            && self.key(key)
        {
            self.0.push('"');
            escape(self.0, value, MAX_VALUE_BYTES);
            self.0.push('"');
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value
            && self.key(key)
        {
            self.0.push_str(itoa::Buffer::new().format(value));
        }
    }

    fn signed(&mut self, key: &str, value: i32) {
        if self.key(key) {
            self.0.push_str(itoa::Buffer::new().format(value));
        }
    }

    /// Microseconds as milliseconds, without zeros at the end.
    fn millis(&mut self, key: &str, micros: Option<u64>) {
        let Some(micros) = micros.filter(|_| self.key(key)) else { return };
        self.0.push_str(itoa::Buffer::new().format(micros / 1000));
        let mut fraction = micros % 1000;
        if fraction == 0 {
            return;
        }
        let mut digits = 3;
        while fraction.is_multiple_of(10) {
            (fraction, digits) = (fraction / 10, digits - 1);
        }
        let mut buffer = itoa::Buffer::new();
        let text = buffer.format(fraction);
        self.0.push('.');
        self.0.push_str(&"00"[..digits - text.len()]);
        self.0.push_str(text);
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

    fn a_line() -> AccessLine<'static> {
        AccessLine {
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
            held: None,
            ttft: Some(Duration::from_millis(90)),
            request_bytes: 4000,
            response_bytes: 900,
            usage: Usage { prompt_tokens: Some(1000), cached_tokens: Some(960), completion_tokens: Some(50) },
            rejection: None,
            predicted_cached_tokens: Some(944),
        }
    }

    #[test]
    fn a_completed_request_says_everything() {
        let line = a_line();
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

    #[test]
    fn times_read_as_numbers() {
        for (micros, expected) in [
            (0, "0"),
            (5, "0.005"),
            (50, "0.05"),
            (500, "0.5"),
            (1000, "1"),
            (1_500_250, "1500.25"),
            (12_034, "12.034"),
        ] {
            let mut line = String::new();
            Json(&mut line).millis("t", Some(micros));
            assert_eq!(line, format!(",\"t\":{expected}"));
            assert_eq!(expected.parse::<f64>().unwrap(), micros as f64 / 1000.0);
        }
    }

    #[test]
    fn a_line_has_a_bound() {
        let long = "\u{1}".repeat(MAX_VALUE_BYTES);
        let line = AccessLine { path: &long, model: &long, ..a_line() };
        let all = lines(LogOptions::default(), |_| line.emit());
        assert!(all[0].len() < 2 * MAX_LINE_BYTES + 6 * MAX_VALUE_BYTES, "{}", all[0].len());
        assert_eq!(serde_json::from_str::<Value>(&all[0]).unwrap()["truncated"], true);
    }

    #[test]
    fn a_hostile_id_stays_in_its_field() {
        let line = AccessLine { request_id: "a\",\"status\":\"200\n", ..a_line() };
        assert_eq!(logged(&line)["x-request-id"], "a\",\"status\":\"200\n");
    }
}
