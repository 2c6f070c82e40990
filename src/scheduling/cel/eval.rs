//! The typed expression and its evaluation, 64 endpoints at a time.
//!
//! Every node works on a column: the results for up to [`CHUNK`] endpoints, so that walking the tree is
//! paid once per 64 and the inner loops are plain arithmetic on the stack. What does not depend on
//! the endpoint is worked out once per column. A boolean is 1 or 0; NaN is a missing value, which
//! arithmetic passes on by itself.

use super::attributes::{Number, RequestText};
use crate::domain::{LoadTable, Slot, Timestamp};
use crate::scheduling::plugin::Cycle;

/// Endpoints that are evaluated together.
pub const CHUNK: usize = 64;

/// Longest text that `contains` looks for; the time for longer ones depends on what they look like.
pub(super) const MAX_PART: usize = 32;

/// Longest text that is read as a number: reading hundreds of digits takes microseconds.
const MAX_DIGITS: usize = 24;

/// Texts of the endpoints by slot.
pub type TextColumn = Vec<Option<Box<str>>>;

/// What an evaluation reads.
pub(super) struct Frame<'a> {
    pub cx: &'a Cycle<'a>,
    pub columns: &'a [TextColumn],
    pub metrics: &'a [Box<str>],
    /// Ordinal of the prefix producer.
    pub prefix: usize,
    pub oldest_fresh: Timestamp,
}

/// A text value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Text {
    Constant(Box<str>),
    Request(RequestText),
    /// The column with this index.
    Endpoint(usize),
}

/// A text value for some endpoints.
enum Texts<'a> {
    Same(Option<&'a str>),
    Column(&'a TextColumn),
}

impl Text {
    pub fn varies(&self) -> bool {
        matches!(self, Text::Endpoint(_))
    }

    fn texts<'a>(&'a self, frame: &Frame<'a>) -> Texts<'a> {
        match self {
            Text::Constant(text) => Texts::Same(Some(text)),
            Text::Request(which) => Texts::Same(which.of(frame.cx.request)),
            Text::Endpoint(column) => frame.columns.get(*column).map_or(Texts::Same(None), Texts::Column),
        }
    }
}

impl<'a> Texts<'a> {
    #[inline]
    fn get(&self, slot: Slot) -> Option<&'a str> {
        match self {
            Texts::Same(text) => *text,
            Texts::Column(column) => column.get(slot.index())?.as_deref(),
        }
    }
}

/// An operation on two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextOp {
    Equal,
    StartsWith,
    EndsWith,
    Contains,
}

/// An operation on two numbers or booleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Less,
    LessOrEqual,
    Equal,
    And,
    Or,
    Least,
    Greatest,
}

/// An operation on one number or boolean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Negate,
    Absolute,
    /// Towards zero.
    Truncate,
    IsKnown,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Constant(f64),
    Number(Number),
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    If(Box<[Expr; 3]>),
    OneOf(Box<Expr>, Box<[f64]>),
    Text(TextOp, Text, Text),
    TextOneOf(Text, Box<[Box<str>]>),
    TextIsKnown(Text),
    /// Number of characters.
    TextSize(Text),
    /// A text read as a number.
    TextNumber(Text),
}

/// A number or boolean value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expr {
    op: Op,
    varies: bool,
}

impl Expr {
    pub fn new(op: Op) -> Self {
        let varies = match &op {
            Op::Constant(_) => false,
            Op::Number(number) => number.varies(),
            Op::Unary(_, a) | Op::OneOf(a, _) => a.varies,
            Op::Binary(_, a, b) => a.varies || b.varies,
            Op::If(parts) => parts.iter().any(|part| part.varies),
            Op::Text(_, a, b) => a.varies() || b.varies(),
            Op::TextOneOf(a, _) | Op::TextIsKnown(a) | Op::TextSize(a) | Op::TextNumber(a) => a.varies(),
        };
        Self { op, varies }
    }

    /// The number, if this is one as written.
    pub fn constant(&self) -> Option<f64> {
        match self.op {
            Op::Constant(value) => Some(value),
            _ => None,
        }
    }

    /// Writes the value for each of at most [`CHUNK`] `slots` to `out`.
    pub fn eval(&self, frame: &Frame<'_>, slots: &[Slot], out: &mut [f64]) {
        if !self.varies && slots.len() > 1 {
            let mut once = [f64::NAN];
            self.eval(frame, &slots[..1], &mut once);
            out.fill(once[0]);
            return;
        }
        match &self.op {
            Op::Constant(value) => out.fill(*value),
            Op::Number(number) => read(*number, frame, slots, out),
            Op::Unary(op, a) => {
                a.eval(frame, slots, out);
                unary(*op, out);
            }
            Op::Binary(op, a, b) => {
                a.eval(frame, slots, out);
                let mut right = [0.0; CHUNK];
                let right = &mut right[..out.len()];
                b.eval(frame, slots, right);
                binary(*op, out, right);
            }
            Op::If(parts) => {
                let [condition, then, otherwise] = &**parts;
                let (mut yes, mut no) = ([0.0; CHUNK], [0.0; CHUNK]);
                let (yes, no) = (&mut yes[..slots.len()], &mut no[..slots.len()]);
                condition.eval(frame, slots, out);
                then.eval(frame, slots, yes);
                otherwise.eval(frame, slots, no);
                for (out, (yes, no)) in out.iter_mut().zip(yes.iter().zip(no.iter())) {
                    *out = if *out == 1.0 {
                        *yes
                    } else if *out == 0.0 {
                        *no
                    } else {
                        f64::NAN
                    };
                }
            }
            Op::OneOf(a, list) => {
                a.eval(frame, slots, out);
                map(out, |a| list.contains(&a));
            }
            Op::Text(op, a, b) => {
                let (a, b) = (a.texts(frame), b.texts(frame));
                for (out, slot) in out.iter_mut().zip(slots) {
                    *out = match (a.get(*slot), b.get(*slot)) {
                        (Some(_), Some(part)) if *op == TextOp::Contains && part.len() > MAX_PART => f64::NAN,
                        (Some(a), Some(b)) => f64::from(match op {
                            TextOp::Equal => a == b,
                            TextOp::StartsWith => a.starts_with(b),
                            TextOp::EndsWith => a.ends_with(b),
                            TextOp::Contains => a.contains(b),
                        }),
                        _ => f64::NAN,
                    };
                }
            }
            Op::TextOneOf(a, list) => texts(a, frame, slots, out, |a| f64::from(list.iter().any(|b| **b == *a))),
            Op::TextIsKnown(a) => {
                texts(a, frame, slots, out, |_| 1.0);
                map_missing(out, 0.0);
            }
            Op::TextSize(a) => texts(a, frame, slots, out, |a| a.chars().count() as f64),
            // "inf" and "nan" are numbers to the parser but not finite ones.
            Op::TextNumber(a) => texts(a, frame, slots, out, |a| match a.trim() {
                digits if digits.len() <= MAX_DIGITS => {
                    digits.parse().ok().filter(|number: &f64| number.is_finite()).unwrap_or(f64::NAN)
                }
                _ => f64::NAN,
            }),
        }
    }
}

fn texts(text: &Text, frame: &Frame<'_>, slots: &[Slot], out: &mut [f64], apply: impl Fn(&str) -> f64) {
    let texts = text.texts(frame);
    for (out, slot) in out.iter_mut().zip(slots) {
        *out = texts.get(*slot).map_or(f64::NAN, &apply);
    }
}

/// Applies a test to what is known.
fn map(out: &mut [f64], test: impl Fn(f64) -> bool) {
    for value in out.iter_mut().filter(|value| !value.is_nan()) {
        *value = f64::from(test(*value));
    }
}

fn map_missing(out: &mut [f64], instead: f64) {
    for value in out.iter_mut().filter(|value| value.is_nan()) {
        *value = instead;
    }
}

fn unary(op: Unary, out: &mut [f64]) {
    for value in out {
        *value = match op {
            Unary::Not => 1.0 - *value,
            Unary::Negate => -*value,
            Unary::Absolute => value.abs(),
            Unary::Truncate => value.trunc(),
            Unary::IsKnown => f64::from(!value.is_nan()),
        };
    }
}

fn binary(op: Binary, out: &mut [f64], right: &[f64]) {
    fn each(out: &mut [f64], right: &[f64], apply: impl Fn(f64, f64) -> f64) {
        for (a, b) in out.iter_mut().zip(right) {
            *a = apply(*a, *b);
        }
    }
    /// Only what is known on both sides can be compared. Without a branch: the loop is vectorised.
    fn compare(out: &mut [f64], right: &[f64], test: impl Fn(f64, f64) -> bool) {
        each(out, right, |a, b| if a.is_nan() | b.is_nan() { f64::NAN } else { f64::from(u8::from(test(a, b))) });
    }
    match op {
        Binary::Add => each(out, right, |a, b| a + b),
        Binary::Subtract => each(out, right, |a, b| a - b),
        Binary::Multiply => each(out, right, |a, b| a * b),
        Binary::Divide => each(out, right, |a, b| a / b),
        Binary::Less => compare(out, right, |a, b| a < b),
        Binary::LessOrEqual => compare(out, right, |a, b| a <= b),
        Binary::Equal => compare(out, right, |a, b| a == b),
        // 1 and 1 is 1; a missing side makes the product missing, unless the other one decides.
        Binary::And => each(out, right, |a, b| if (a == 0.0) | (b == 0.0) { 0.0 } else { a * b }),
        Binary::Or => each(out, right, |a, b| if (a == 1.0) | (b == 1.0) { 1.0 } else { a + b }),
        Binary::Least => each(out, right, |a, b| if a.is_nan() | (a <= b) { a } else { b }),
        Binary::Greatest => each(out, right, |a, b| if a.is_nan() | (a >= b) { a } else { b }),
    }
}

fn read(number: Number, frame: &Frame<'_>, slots: &[Slot], out: &mut [f64]) {
    let Frame { cx, .. } = frame;
    fn each(slots: &[Slot], out: &mut [f64], value: impl Fn(Slot) -> f64) {
        for (out, slot) in out.iter_mut().zip(slots) {
            *out = value(*slot);
        }
    }
    let optional = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
    match number {
        Number::PromptTokens => {
            let prompts = !cx.request.prompts.is_empty();
            out.fill(optional(cx.signals.prompt_tokens.or(prompts.then(|| cx.request.estimated_prompt_tokens()))));
        }
        Number::MaxOutputTokens => out.fill(optional(cx.request.max_output_tokens)),
        Number::Streaming => out.fill(f64::from(cx.request.stream)),
        Number::Port => each(slots, out, |slot| {
            cx.snapshot.topology.get(slot).map_or(f64::NAN, |e| f64::from(e.spec.address.port()))
        }),
        Number::Waiting => fresh(frame, slots, out, LoadTable::waiting),
        Number::Running => fresh(frame, slots, out, LoadTable::running),
        Number::KvUsage => fresh(frame, slots, out, LoadTable::kv_usage),
        Number::SampleAge => each(slots, out, |slot| {
            cx.snapshot.loads.taken_at(slot).map_or(f64::NAN, |at| cx.now.since(at).as_secs_f64())
        }),
        Number::InFlightRequests | Number::InFlightTokens => match &cx.signals.in_flight {
            Some(view) if number == Number::InFlightRequests => each(slots, out, |slot| f64::from(view.requests(slot))),
            Some(view) => each(slots, out, |slot| view.tokens(slot) as f64),
            None => out.fill(f64::NAN),
        },
        Number::PrefixMatch => match cx.signals.prefix.get(frame.prefix) {
            Some(prefix) => each(slots, out, |slot| f64::from(prefix.share(slot).min(1.0))),
            None => out.fill(0.0),
        },
        Number::Metric(index) => {
            let column = frame.metrics.get(index).and_then(|key| cx.snapshot.loads.attribute(key)).unwrap_or_default();
            for (out, slot) in out.iter_mut().zip(slots) {
                let value = column.get(slot.index()).copied().unwrap_or(f64::NAN);
                *out = if cx.snapshot.loads.taken_at(*slot) >= Some(frame.oldest_fresh) { value } else { f64::NAN };
            }
        }
    }
}

/// Readings count while their sample is fresh, as for all scorers; negative ones count as zero.
fn fresh(frame: &Frame<'_>, slots: &[Slot], out: &mut [f64], metric: impl Fn(&LoadTable, Slot) -> Option<f32>) {
    let loads = &*frame.cx.snapshot.loads;
    for (out, slot) in out.iter_mut().zip(slots) {
        *out = match metric(loads, *slot) {
            Some(reading) if loads.taken_at(*slot) >= Some(frame.oldest_fresh) => f64::from(reading.max(0.0)),
            _ => f64::NAN,
        };
    }
}
