//! From the text of an expression to the typed one: parsed by the `cel` crate, checked, bounded.

use cel::common::ast::{CallExpr, Expr as Ast, IdedExpr, ListExpr, LiteralValue, SelectExpr, operators};
use cel::parser::{ParseErrors, PrattParser};

use super::attributes::{Attribute, EndpointText, Item, Number, RequestText, TABLE};
use super::eval::{Binary, Expr, MAX_PART, Op, Text, TextOp, Unary};
use super::{Kind, MAX_COST, MAX_DEPTH, MAX_LENGTH, MAX_NESTING, MAX_TEXT};
use crate::domain::node::nearest;

/// What is wrong with an expression and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub message: String,
    pub fix: String,
}

impl Mistake {
    fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { message: message.into(), fix: fix.into() }
    }
}

/// A compiled expression and what it reads.
#[derive(Debug)]
pub(super) struct Compiled {
    pub root: Expr,
    pub texts: Vec<EndpointText>,
    /// Attributes, custom metrics left out.
    pub numbers: Vec<Number>,
    /// Keys of custom metrics, by index.
    pub metrics: Vec<Box<str>>,
}

/// Functions, for errors.
const FUNCTIONS: &[&str] =
    &["startsWith", "endsWith", "contains", "size", "double", "int", "has", "math.least", "math.greatest", "math.abs"];

/// Compiles `source`, which must give `wanted`.
pub(super) fn compile(source: &str, wanted: Kind) -> Result<Compiled, Mistake> {
    if source.trim().is_empty() {
        return Err(Mistake::new(
            "there is no expression",
            "write one, such as `endpoint.waiting_requests < 10` to filter or `1.0 - endpoint.kv_cache_usage` to score",
        ));
    }
    if source.len() > MAX_LENGTH {
        let message = format!("the expression has {} bytes, and the most is {MAX_LENGTH}", source.len());
        return Err(Mistake::new(message, "split it over several plugins"));
    }
    let ast = PrattParser::new().max_recursion_depth(MAX_NESTING).parse(source).map_err(|errors| not_cel(&errors))?;
    let mut compiler = Compiler { texts: Vec::new(), numbers: Vec::new(), metrics: Vec::new(), cost: 0 };
    let root = match (compiler.value(&ast, 0)?, wanted) {
        (Typed::Bool(root), Kind::Bool) | (Typed::Number(root), Kind::Number) => root,
        (other, _) => {
            let message = format!("the expression gives {}, and {} is needed", other.kind().a(), wanted.a());
            let fix = match wanted {
                Kind::Bool => "compare it with something",
                _ => "write `… ? 1.0 : 0.0` to make a number of a condition",
            };
            return Err(Mistake::new(message, fix));
        }
    };
    let Compiler { texts, numbers, metrics, .. } = compiler;
    Ok(Compiled { root, texts, numbers, metrics })
}

/// The mistake behind the errors of the parser.
fn not_cel(errors: &ParseErrors) -> Mistake {
    let errors = &errors.errors;
    if errors.iter().any(|error| error.msg.contains("recursion limit")) {
        let message = format!("brackets are nested more than {MAX_NESTING} deep");
        return Mistake::new(message, "make it flatter, or split it over several plugins");
    }
    // Notes without a place stand first; an error that has one says more.
    let first = errors.iter().find(|error| error.pos.0 > 0).or(errors.first());
    let message = first.map_or_else(String::new, |error| {
        let place = match error.pos {
            (line @ 1.., column) => format!("line {line}, column {column}: "),
            _ => String::new(),
        };
        format!("{place}{}", error.msg.trim_start_matches("Syntax error: "))
    });
    Mistake::new(format!("the expression is not CEL: {message}"), "mend it there; docs/configuration.md has examples")
}

/// A value of known kind.
enum Typed {
    Bool(Expr),
    Number(Expr),
    Text(Text),
}

impl Typed {
    fn kind(&self) -> Kind {
        match self {
            Typed::Bool(_) => Kind::Bool,
            Typed::Number(_) => Kind::Number,
            Typed::Text(_) => Kind::Text,
        }
    }
}

struct Compiler {
    texts: Vec<EndpointText>,
    numbers: Vec<Number>,
    metrics: Vec<Box<str>>,
    cost: usize,
}

impl Compiler {
    fn pay(&mut self, cost: usize) -> Result<(), Mistake> {
        self.cost += cost;
        if self.cost > MAX_COST {
            let message = format!("the expression costs more than {MAX_COST} units per endpoint");
            return Err(Mistake::new(
                message,
                "make it shorter: comparing texts costs 16, reading a number from one 24, `contains` 40, and all else 1",
            ));
        }
        Ok(())
    }

    fn value(&mut self, ast: &IdedExpr, depth: usize) -> Result<Typed, Mistake> {
        if depth > MAX_DEPTH {
            let message = format!("the expression is nested more than {MAX_DEPTH} operators deep");
            return Err(Mistake::new(message, "make it flatter, or split it over several plugins"));
        }
        self.pay(1)?;
        match &ast.expr {
            Ast::Literal(literal) => literal_value(literal),
            Ast::Select(select) => self.select(select),
            Ast::Call(call) => self.call(call, depth + 1),
            Ast::Ident(name) => Err(unknown(name)),
            Ast::List(_) => Err(Mistake::new("a list can only stand after `in`", "write `value in ['a', 'b']`")),
            Ast::Comprehension(_) => Err(Mistake::new(
                "all(), exists(), exists_one(), map() and filter() are not available: there is nothing to loop over",
                "use `&&`, `||` and `in`",
            )),
            _ => Err(Mistake::new(
                "maps, messages and null are not available",
                "write with numbers, texts, booleans and attributes",
            )),
        }
    }

    fn number(&mut self, ast: &IdedExpr, depth: usize, what: &str) -> Result<Expr, Mistake> {
        match self.value(ast, depth)? {
            Typed::Number(expr) => Ok(expr),
            other => Err(mismatch(ast, &other, what, Kind::Number)),
        }
    }

    fn boolean(&mut self, ast: &IdedExpr, depth: usize, what: &str) -> Result<Expr, Mistake> {
        match self.value(ast, depth)? {
            Typed::Bool(expr) => Ok(expr),
            other => Err(mismatch(ast, &other, what, Kind::Bool)),
        }
    }

    fn text(&mut self, ast: &IdedExpr, depth: usize, what: &str) -> Result<Text, Mistake> {
        self.pay(8)?;
        match self.value(ast, depth)? {
            Typed::Text(text) => Ok(text),
            other => Err(mismatch(ast, &other, what, Kind::Text)),
        }
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<Typed, Mistake> {
        let CallExpr { func_name, target, args } = call;
        let name = func_name.as_str();
        match (target.as_deref(), name, args.as_slice()) {
            (None, operators::INDEX, [map, key]) => self.index(map, key),
            (None, operators::IN, [value, list]) => self.within(value, list, depth),
            (None, operators::CONDITIONAL, [condition, then, otherwise]) => {
                self.conditional(condition, then, otherwise, depth)
            }
            (None, operators::EQUALS, [a, b]) => Ok(Typed::Bool(self.equal(a, b, depth)?)),
            (None, operators::NOT_EQUALS, [a, b]) => Ok(Typed::Bool(unary(Unary::Not, self.equal(a, b, depth)?))),
            (None, operators::LOGICAL_NOT, [a]) => Ok(Typed::Bool(unary(Unary::Not, self.boolean(a, depth, "`!`")?))),
            (None, operators::LOGICAL_AND, [a, b]) => {
                Ok(Typed::Bool(binary(Binary::And, self.boolean(a, depth, "`&&`")?, self.boolean(b, depth, "`&&`")?)))
            }
            (None, operators::LOGICAL_OR, [a, b]) => {
                Ok(Typed::Bool(binary(Binary::Or, self.boolean(a, depth, "`||`")?, self.boolean(b, depth, "`||`")?)))
            }
            (None, operators::NEGATE, [a]) => Ok(Typed::Number(unary(Unary::Negate, self.number(a, depth, "`-`")?))),
            (None, operators::MODULO, _) => {
                Err(Mistake::new("`%` is not available: its time depends on the numbers", "use `/`, `int()` and `-`"))
            }
            (None, _, [a, b]) if operator(name).is_some() => self.operator(name, a, b, depth),
            (Some(text), "startsWith" | "endsWith" | "contains", [part]) => self.part(name, text, part, depth),
            (None, "size", [text]) | (Some(text), "size", []) => {
                Ok(Typed::Number(Expr::new(Op::TextSize(self.text(text, depth, "`size`")?))))
            }
            (None, "double" | "int", [value]) => self.convert(name, value, depth),
            (Some(IdedExpr { expr: Ast::Ident(group), .. }), _, _) if group == "math" => self.math(name, args, depth),
            (_, "matches", _) => {
                Err(Mistake::new("regular expressions are not available", "use startsWith, endsWith, contains or `in`"))
            }
            _ => Err(unknown_function(name, args.len())),
        }
    }

    fn part(&mut self, name: &str, text: &IdedExpr, part: &IdedExpr, depth: usize) -> Result<Typed, Mistake> {
        let what = format!("`{name}`");
        let (text, part) = (self.text(text, depth, &what)?, self.text(part, depth, &what)?);
        let op = match name {
            "startsWith" => TextOp::StartsWith,
            "endsWith" => TextOp::EndsWith,
            _ => {
                self.pay(24)?;
                if matches!(&part, Text::Constant(part) if part.len() > MAX_PART) {
                    let message = format!("`contains` looks for at most {MAX_PART} bytes");
                    return Err(Mistake::new(message, "look for a shorter part, or use startsWith, endsWith or `==`"));
                }
                TextOp::Contains
            }
        };
        Ok(Typed::Bool(Expr::new(Op::Text(op, text, part))))
    }

    fn operator(&mut self, name: &str, a: &IdedExpr, b: &IdedExpr, depth: usize) -> Result<Typed, Mistake> {
        let (shown, op, swapped) = operator(name).unwrap_or(("", Binary::Add, false));
        let (a, b) = (self.number(a, depth, shown)?, self.number(b, depth, shown)?);
        let expr = if swapped { binary(op, b, a) } else { binary(op, a, b) };
        Ok(match op {
            Binary::Less | Binary::LessOrEqual => Typed::Bool(expr),
            _ => Typed::Number(expr),
        })
    }

    fn math(&mut self, name: &str, args: &[IdedExpr], depth: usize) -> Result<Typed, Mistake> {
        let what = format!("`math.{name}`");
        let (op, first, rest) = match (name, args) {
            ("abs", [a]) => return Ok(Typed::Number(unary(Unary::Absolute, self.number(a, depth, &what)?))),
            ("least", [first, rest @ ..]) => (Binary::Least, first, rest),
            ("greatest", [first, rest @ ..]) => (Binary::Greatest, first, rest),
            _ => return Err(unknown_function(&format!("math.{name}"), args.len())),
        };
        let mut all = self.number(first, depth, &what)?;
        for (i, next) in rest.iter().enumerate() {
            // Each argument nests the ones before.
            all = binary(op, all, self.number(next, depth + i, &what)?);
        }
        Ok(Typed::Number(all))
    }

    fn convert(&mut self, name: &str, value: &IdedExpr, depth: usize) -> Result<Typed, Mistake> {
        let number = match self.value(value, depth)? {
            Typed::Number(number) => number,
            Typed::Text(text) => {
                self.pay(24)?;
                Expr::new(Op::TextNumber(text))
            }
            other @ Typed::Bool(_) => return Err(mismatch(value, &other, &format!("`{name}`"), Kind::Number)),
        };
        Ok(Typed::Number(if name == "int" { unary(Unary::Truncate, number) } else { number }))
    }

    fn conditional(
        &mut self,
        condition: &IdedExpr,
        then: &IdedExpr,
        otherwise: &IdedExpr,
        depth: usize,
    ) -> Result<Typed, Mistake> {
        let condition = self.boolean(condition, depth, "`?`")?;
        match (self.value(then, depth)?, self.value(otherwise, depth)?) {
            (Typed::Number(a), Typed::Number(b)) => Ok(Typed::Number(Expr::new(Op::If(Box::new([condition, a, b]))))),
            (Typed::Bool(a), Typed::Bool(b)) => Ok(Typed::Bool(Expr::new(Op::If(Box::new([condition, a, b]))))),
            (a, b) => Err(Mistake::new(
                format!("`?` chooses between {} and {}", a.kind().a(), b.kind().a()),
                "let both sides give a number, or both a boolean",
            )),
        }
    }

    fn equal(&mut self, a: &IdedExpr, b: &IdedExpr, depth: usize) -> Result<Expr, Mistake> {
        match (self.value(a, depth)?, self.value(b, depth)?) {
            (Typed::Number(a), Typed::Number(b)) | (Typed::Bool(a), Typed::Bool(b)) => Ok(binary(Binary::Equal, a, b)),
            (Typed::Text(a), Typed::Text(b)) => {
                self.pay(16)?;
                Ok(Expr::new(Op::Text(TextOp::Equal, a, b)))
            }
            (left, right) => Err(Mistake::new(
                format!("`{}` is {} and `{}` is {}", show(a), left.kind().a(), show(b), right.kind().a()),
                "compare values of one kind; texts stand in quotes, and double(text) reads a number",
            )),
        }
    }

    /// `value in list`, or `'key' in map`.
    fn within(&mut self, value: &IdedExpr, list: &IdedExpr, depth: usize) -> Result<Typed, Mistake> {
        if attribute(list).is_some_and(|found| found.item.is_map()) {
            return Ok(Typed::Bool(known(self.index(list, value)?)));
        }
        let Ast::List(ListExpr { elements, .. }) = &list.expr else {
            return Err(Mistake::new(
                format!("`{}` is no list", show(list)),
                "write `value in ['a', 'b']` or `'key' in endpoint.labels`",
            ));
        };
        let value = self.value(value, depth)?;
        let wrong = |kind: Kind| {
            let message =
                format!("the list after `in` must hold nothing but {}s as written", kind.a().trim_start_matches("a "));
            Mistake::new(message, "write `value in ['a', 'b']`, or compare with `==` and `||`")
        };
        match value {
            Typed::Text(text) => {
                self.pay(8 + 2 * elements.len())?;
                let texts = elements.iter().map(|e| match self.value(e, depth)? {
                    Typed::Text(Text::Constant(text)) => Ok(text),
                    _ => Err(wrong(Kind::Text)),
                });
                Ok(Typed::Bool(Expr::new(Op::TextOneOf(text, texts.collect::<Result<_, _>>()?))))
            }
            Typed::Number(number) => {
                let numbers = elements.iter().map(|e| match self.value(e, depth)? {
                    Typed::Number(expr) => expr.constant().ok_or_else(|| wrong(Kind::Number)),
                    _ => Err(wrong(Kind::Number)),
                });
                Ok(Typed::Bool(Expr::new(Op::OneOf(Box::new(number), numbers.collect::<Result<_, _>>()?))))
            }
            Typed::Bool(_) => Err(Mistake::new("`in` looks for a text or a number, not for a boolean", "use `==`")),
        }
    }

    /// `map[key]`.
    fn index(&mut self, map: &IdedExpr, key: &IdedExpr) -> Result<Typed, Mistake> {
        let Some(found) = attribute(map).filter(|found| found.item.is_map()) else {
            let message = format!("`{}` has no keys", show(map));
            return Err(Mistake::new(
                message,
                "of the attributes, request.headers, endpoint.labels and endpoint.metrics have",
            ));
        };
        match &key.expr {
            Ast::Literal(LiteralValue::String(key)) => self.entry(found, key.inner()),
            _ => Err(Mistake::new(
                format!("the key of `{}.{}` must be a text in quotes", found.group, found.field),
                format!("write `{}.{}['name']`", found.group, found.field),
            )),
        }
    }

    /// `group.field`, `map.key`, and both within has().
    fn select(&mut self, select: &SelectExpr) -> Result<Typed, Mistake> {
        let SelectExpr { operand, field, test } = select;
        let value = match &operand.expr {
            Ast::Ident(group) => {
                let Some(found) = TABLE.iter().find(|a| a.group == group && a.field == field) else {
                    return Err(unknown(&format!("{group}.{field}")));
                };
                self.item(found)?
            }
            _ => match attribute(operand).filter(|found| found.item.is_map()) {
                Some(found) => self.entry(found, field)?,
                None => return Err(unknown(&format!("{}.{field}", show(operand)))),
            },
        };
        Ok(if *test { Typed::Bool(known(value)) } else { value })
    }

    fn item(&mut self, found: &Attribute) -> Result<Typed, Mistake> {
        Ok(match found.item {
            Item::Number(number) => Typed::Number(self.read(number)),
            Item::Bool(number) => Typed::Bool(self.read(number)),
            Item::Model => Typed::Text(Text::Request(RequestText::Model)),
            Item::TargetModel => Typed::Text(Text::Request(RequestText::TargetModel)),
            Item::Path => Typed::Text(Text::Request(RequestText::Path)),
            Item::Name => Typed::Text(self.column(EndpointText::Name)),
            Item::Namespace => Typed::Text(self.column(EndpointText::Namespace)),
            Item::Address => Typed::Text(self.column(EndpointText::Address)),
            Item::Headers | Item::Labels | Item::Metrics => {
                let name = format!("{}.{}", found.group, found.field);
                return Err(Mistake::new(format!("`{name}` is read with a key"), format!("write `{name}['name']`")));
            }
        })
    }

    fn entry(&mut self, found: &Attribute, key: &str) -> Result<Typed, Mistake> {
        if key.is_empty() || key.len() > MAX_TEXT {
            let message = format!("the key of `{}.{}` must have 1 to {MAX_TEXT} bytes", found.group, found.field);
            return Err(Mistake::new(message, "write the name of one that exists"));
        }
        Ok(match found.item {
            Item::Headers => Typed::Text(Text::Request(RequestText::Header(key.to_ascii_lowercase().into()))),
            Item::Labels => Typed::Text(self.column(EndpointText::Label(key.into()))),
            _ => {
                let known = self.metrics.iter().position(|metric| &**metric == key);
                let index = known.unwrap_or_else(|| {
                    self.metrics.push(key.into());
                    self.metrics.len() - 1
                });
                Typed::Number(Expr::new(Op::Number(Number::Metric(index))))
            }
        })
    }

    fn read(&mut self, number: Number) -> Expr {
        if !self.numbers.contains(&number) {
            self.numbers.push(number);
        }
        Expr::new(Op::Number(number))
    }

    fn column(&mut self, text: EndpointText) -> Text {
        let known = self.texts.iter().position(|known| *known == text);
        Text::Endpoint(known.unwrap_or_else(|| {
            self.texts.push(text);
            self.texts.len() - 1
        }))
    }
}

fn literal_value(literal: &LiteralValue) -> Result<Typed, Mistake> {
    let number = |value: f64| Ok(Typed::Number(Expr::new(Op::Constant(value))));
    match literal {
        LiteralValue::Boolean(value) => Ok(Typed::Bool(Expr::new(Op::Constant(f64::from(*value.inner()))))),
        LiteralValue::Double(value) => number(*value.inner()),
        LiteralValue::Int(value) => number(*value.inner() as f64),
        LiteralValue::UInt(value) => number(*value.inner() as f64),
        LiteralValue::String(text) if text.inner().len() <= MAX_TEXT => {
            Ok(Typed::Text(Text::Constant(text.inner().into())))
        }
        LiteralValue::String(_) => {
            Err(Mistake::new(format!("a text has more than {MAX_TEXT} bytes"), "compare with a shorter one"))
        }
        LiteralValue::Bytes(_) | LiteralValue::Null => Err(Mistake::new(
            "bytes and null are not available",
            "write texts as 'text', and ask for missing values with has() or in",
        )),
    }
}

/// The attribute that `ast` names.
fn attribute(ast: &IdedExpr) -> Option<&'static Attribute> {
    match &ast.expr {
        Ast::Select(SelectExpr { operand, field, test: false }) => match &operand.expr {
            Ast::Ident(group) => TABLE.iter().find(|a| a.group == group && a.field == field),
            _ => None,
        },
        _ => None,
    }
}

/// How an operator on two numbers is written, what it does, and whether its sides change places.
fn operator(name: &str) -> Option<(&'static str, Binary, bool)> {
    Some(match name {
        operators::ADD => ("`+`", Binary::Add, false),
        operators::SUBSTRACT => ("`-`", Binary::Subtract, false),
        operators::MULTIPLY => ("`*`", Binary::Multiply, false),
        operators::DIVIDE => ("`/`", Binary::Divide, false),
        operators::LESS => ("`<`", Binary::Less, false),
        operators::LESS_EQUALS => ("`<=`", Binary::LessOrEqual, false),
        operators::GREATER => ("`>`", Binary::Less, true),
        operators::GREATER_EQUALS => ("`>=`", Binary::LessOrEqual, true),
        _ => return None,
    })
}

fn unary(op: Unary, a: Expr) -> Expr {
    Expr::new(Op::Unary(op, Box::new(a)))
}

fn binary(op: Binary, a: Expr, b: Expr) -> Expr {
    Expr::new(Op::Binary(op, Box::new(a), Box::new(b)))
}

/// Whether a value is there.
fn known(value: Typed) -> Expr {
    match value {
        Typed::Bool(expr) | Typed::Number(expr) => unary(Unary::IsKnown, expr),
        Typed::Text(text) => Expr::new(Op::TextIsKnown(text)),
    }
}

fn mismatch(ast: &IdedExpr, found: &Typed, what: &str, wanted: Kind) -> Mistake {
    let message = format!("`{}` is {}, and {what} takes {}", show(ast), found.kind().a(), wanted.a());
    let fix = match (found.kind(), wanted) {
        (Kind::Text, Kind::Number) => "write double(…) to read a text as a number",
        (Kind::Number, Kind::Bool) => "compare it with something",
        (Kind::Bool, Kind::Number) => "write `… ? 1.0 : 0.0`",
        _ => "use an attribute of the right kind",
    };
    Mistake::new(message, fix)
}

fn unknown(name: &str) -> Mistake {
    let known: Vec<String> = TABLE.iter().map(|a| format!("{}.{}", a.group, a.field)).collect();
    let fix = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write one of these; texts stand in quotes".to_owned(),
    };
    Mistake::new(format!("there is no attribute `{name}`; the attributes are {}", known.join(", ")), fix)
}

fn unknown_function(name: &str, arguments: usize) -> Mistake {
    let fix = match nearest(name, FUNCTIONS.iter().copied()).filter(|near| *near != name) {
        Some(near) => format!("did you mean `{near}`? the functions are {}", FUNCTIONS.join(", ")),
        None => format!("the functions are {}", FUNCTIONS.join(", ")),
    };
    Mistake::new(format!("there is no function `{name}` for {arguments} arguments"), fix)
}

/// A part of the expression as it may stand in a message.
fn show(ast: &IdedExpr) -> String {
    match &ast.expr {
        Ast::Ident(name) => name.clone(),
        Ast::Select(SelectExpr { operand, field, .. }) => match &operand.expr {
            Ast::Ident(group) => format!("{group}.{field}"),
            _ => format!("….{field}"),
        },
        Ast::Literal(LiteralValue::String(text)) => format!("'{}'", text.inner()),
        Ast::Literal(LiteralValue::Int(value)) => value.inner().to_string(),
        Ast::Literal(LiteralValue::Double(value)) => value.inner().to_string(),
        Ast::Call(CallExpr { func_name, args, .. }) if func_name == operators::INDEX => match args.as_slice() {
            [map, key] if attribute(map).is_some() => format!("{}[{}]", show(map), show(key)),
            _ => "…[…]".to_owned(),
        },
        _ => "…".to_owned(),
    }
}
