//! YAML to a tree of values, within a budget, and objects to YAML. The only user of `serde_yaml`.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::check::quote;
use crate::{Code, Problem};

/// Most values in a document once its aliases are expanded: several times what a full file can hold without any.
const MAX_VALUES: usize = 500_000;
/// Most bytes of text in a document once its aliases are expanded.
const MAX_TEXT: usize = 4 << 20;
/// Most brackets that may be open at once. The parser's time grows with their number squared.
const MAX_BRACKETS: usize = 1000;

/// Parses one document; [`Value::Null`] for an empty one.
pub(super) fn parse(text: &str) -> Result<Value, Problem> {
    if open_brackets(text) > MAX_BRACKETS {
        return Err(too_complex());
    }
    let budget = RefCell::new(Budget::default());
    let seed = Tree {
        budget: &budget,
        path: String::new(),
    };
    let parsed = seed.deserialize(serde_yaml::Deserializer::from_str(text));
    let cause = budget.into_inner().cause;
    parsed.map_err(|error| cause.unwrap_or_else(|| explain(&error)))
}

/// Renders a definition of a kind, or any other object, as YAML.
///
/// # Errors
///
/// The object cannot be represented, which does not happen for the types of this crate.
pub fn render(object: &impl serde::Serialize) -> Result<String, RenderError> {
    serde_yaml::to_string(object).map_err(|error| RenderError(error.to_string()))
}

/// An object could not be rendered as YAML.
#[derive(Debug, thiserror::Error)]
#[error("cannot render as YAML: {0}")]
pub struct RenderError(String);

/// An upper bound of the flow collections open at once: brackets in texts count too.
fn open_brackets(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

fn explain(error: &serde_yaml::Error) -> Problem {
    let text = error.to_string();
    // The library does not tell these two apart from others by type.
    if text.contains("recursion limit exceeded") || text.contains("repetition limit exceeded") {
        return too_complex();
    }
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    let message = format!(
        "not YAML that can be read: {text}; line numbers count from the beginning of the document"
    );
    Problem::new("", Code::BadYaml, message)
}

fn too_complex() -> Problem {
    let message = "the document is nested too deeply, or its aliases expand to too much; write it out plainly";
    Problem::new("", Code::TooComplex, message)
}

/// What a document has used, and why it was given up.
#[derive(Default)]
struct Budget {
    values: usize,
    text: usize,
    cause: Option<Problem>,
}

/// Builds the tree below one place.
struct Tree<'b> {
    budget: &'b RefCell<Budget>,
    path: String,
}

impl Tree<'_> {
    fn spend<E: serde::de::Error>(&self, text: usize) -> Result<(), E> {
        let mut budget = self.budget.borrow_mut();
        budget.values += 1;
        budget.text = budget.text.saturating_add(text);
        if budget.values <= MAX_VALUES && budget.text <= MAX_TEXT {
            return Ok(());
        }
        budget.cause.get_or_insert_with(too_complex);
        Err(E::custom("too complex"))
    }

    fn below(&self, step: fmt::Arguments<'_>) -> Self {
        Self {
            budget: self.budget,
            path: format!("{}{step}", self.path),
        }
    }

    fn field(&self, key: &str) -> Self {
        if self.path.is_empty() {
            self.below(format_args!("{key}"))
        } else {
            self.below(format_args!(".{key}"))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value without tag")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Null)
    }

    /// An empty document.
    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::from(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.spend(0)?;
        // No field is a fraction; infinities have no place in the tree, and any number is refused where one stands.
        Ok(Number::from_f64(value).map_or_else(|| Value::from(0.5), Value::Number))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.spend(value.len()).map(|()| Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut items = Vec::new();
        while let Some(item) =
            access.next_element_seed(self.below(format_args!("[{}]", items.len())))?
        {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut fields = Map::new();
        while let Some(key) = access.next_key_seed(Key(&self))? {
            let value = access.next_value_seed(self.field(&key))?;
            if fields.contains_key(&key) {
                return Err(self.twice(&key));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

impl Tree<'_> {
    fn twice<E: serde::de::Error>(&self, key: &str) -> E {
        let message = format!("{} occurs twice in one mapping; remove one", quote(key));
        let path = self.field(&cut(key)).path;
        self.budget
            .borrow_mut()
            .cause
            .get_or_insert_with(|| Problem::new(path, Code::DuplicateField, message));
        E::custom("duplicate field")
    }
}

fn cut(key: &str) -> String {
    key.chars().filter(|c| !c.is_control()).take(80).collect()
}

/// A key of a mapping: any scalar, as text.
struct Key<'a, 'b>(&'a Tree<'b>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<String, E> {
        self.0.spend(value.len()).map(|()| value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn code(text: &str) -> Code {
        parse(text).expect_err("refused").code
    }

    #[test]
    fn values() {
        let text = "a: [1, -2, true, null, 'x', 1.5]\nb: {c: yes, 1: \"\"}\nd: 0o17\ne: .inf\n";
        let expected = json!({"a": [1, -2, true, null, "x", 1.5], "b": {"c": "yes", "1": ""}, "d": 15, "e": 0.5});
        assert_eq!(parse(text).expect("YAML"), expected);
        assert_eq!(parse(" # nothing\n").expect("YAML"), Value::Null);
        assert_eq!(
            parse("a: &x 1\nb: *x\n").expect("YAML"),
            json!({"a": 1, "b": 1})
        );
    }

    #[test]
    fn refusals() {
        for text in [
            "a: [",
            "a: b: c",
            "\tx",
            "a: *missing",
            "a: !tag x",
            "? [a]\n: b",
            "a: \u{1}",
        ] {
            assert_eq!(code(text), Code::BadYaml, "{text}");
        }
        let twice = parse("a: [{b: 1, c: 2, b: 3}]").expect_err("refused");
        assert_eq!(
            (twice.code, twice.field.as_str()),
            (Code::DuplicateField, "a[0].b")
        );
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let item = format!("*a{}", level - 1);
            laughs += &format!("a{level}: &a{level} [{}]\n", [item.as_str(); 10].join(", "));
        }
        let long = format!(
            "a: &a \"{}\"\nb: [{}]\n",
            "x".repeat(500_000),
            ["*a"; 50_000].join(", ")
        );
        let deep = "[".repeat(1_000_000);
        let flat = "- ".repeat(500_000);
        let maps = format!("{}x", "? ".repeat(500_000));
        let started = Instant::now();
        for text in [laughs, long, deep, "{a: ".repeat(900), flat, maps] {
            assert!(matches!(code(&text), Code::TooComplex | Code::BadYaml));
        }
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
