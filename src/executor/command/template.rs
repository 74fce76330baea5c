//! Fills the placeholders of a command's arguments with fields of the input.
//!
//! A placeholder takes a scalar and fills exactly one argument; what it puts there is never looked at
//! by a shell and never becomes a second argument. A value that would turn its argument into an option
//! is refused unless the type allows it.

use serde_json::Value;

use crate::config::template::{Part, Template};
use crate::job::payload::{Content, Payload};

/// Longest argument that Linux takes: 32 pages with the closing NUL (`MAX_ARG_STRLEN`, execve(2)).
const ARGUMENT_BYTES_MAX: usize = 32 * 4096 - 1;

/// The input as placeholders see it.
pub(super) enum Fields {
    Absent,
    /// What it is instead of JSON.
    Other(&'static str),
    Json(Value),
}

/// Which field, and what is wrong with it.
pub(super) type Problem = (String, String);

/// The argument for this input, or every field that is wrong.
pub(super) fn fill(
    template: &Template,
    input: &Fields,
    allow_dash: bool,
) -> Result<String, Vec<Problem>> {
    let mut argument = String::new();
    let mut problems = Vec::new();
    for part in template.parts() {
        match part {
            Part::Text(text) => argument.push_str(text),
            Part::Field(path) => match input.scalar(path) {
                Ok(value) => {
                    if argument.is_empty() && value.starts_with('-') && !allow_dash {
                        let problem =
                            "begins with `-`, which would make it an option of the command";
                        problems.push((field_name(path), problem.to_owned()));
                    }
                    argument.push_str(&value);
                }
                Err(problem) => problems.push(problem),
            },
        }
    }
    if argument.len() > ARGUMENT_BYTES_MAX && !template.is_fixed() {
        let problem = format!(
            "makes an argument of {} bytes; at most {ARGUMENT_BYTES_MAX} are accepted: read the input from stdin instead",
            argument.len()
        );
        problems.push(("input".to_owned(), problem));
    }
    if problems.is_empty() {
        Ok(argument)
    } else {
        Err(problems)
    }
}

impl Fields {
    pub(super) fn of(input: Option<&Payload>) -> Self {
        let Some(input) = input else {
            return Self::Absent;
        };
        match (input.to_json(), input.content()) {
            (Some(value), _) => Self::Json(value),
            (None, Content::Data(_)) => Self::Other("bytes"),
            (None, Content::Text(_) | Content::Json(_)) => Self::Other("text"),
        }
    }

    fn scalar(&self, path: &[String]) -> Result<String, Problem> {
        let problem = |problem: &str| (field_name(path), problem.to_owned());
        let mut value = match self {
            Self::Json(value) => value,
            Self::Absent => return Err(problem("is required")),
            Self::Other(kind) => {
                let sentence = format!(
                    "is {kind}; a JSON object with {} is needed",
                    field_name(path)
                );
                return Err(("input".to_owned(), sentence));
            }
        };
        for name in path {
            value = value.get(name).ok_or_else(|| problem("is required"))?;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(yes) => yes.to_string(),
            Value::Number(number) => number_text(number),
            Value::Null => return Err(problem("is null; a string, number or boolean is needed")),
            Value::Array(_) => {
                return Err(problem(
                    "is an array; a string, number or boolean is needed",
                ));
            }
            Value::Object(_) => {
                return Err(problem(
                    "is an object; a string, number or boolean is needed",
                ));
            }
        };
        if text.contains('\0') {
            return Err(problem("has a NUL character; no argument can hold one"));
        }
        Ok(text)
    }
}

/// As in the normalised JSON text, but with every digit of an integer.
fn number_text(number: &serde_json::Number) -> String {
    if number.is_f64() {
        serde_json_canonicalizer::to_string(number).unwrap_or_else(|_| number.to_string())
    } else {
        number.to_string()
    }
}

fn field_name(path: &[String]) -> String {
    format!("input.{}", path.join("."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str, input: Value, allow_dash: bool) -> Result<String, Vec<Problem>> {
        let template = Template::parse(template).expect("a valid template");
        super::fill(&template, &Fields::Json(input), allow_dash)
    }

    #[test]
    fn placeholders_take_scalars_and_fill_one_argument() {
        for (template, input, argument) in [
            ("{input.w}", json!({"w": "a b"}), "a b"),
            (
                "{input.w}",
                json!({"w": "$(reboot); `x` \"'"}),
                "$(reboot); `x` \"'",
            ),
            ("{input.w}", json!({"w": ""}), ""),
            ("{input.w}", json!({"w": "{input.x}"}), "{input.x}"),
            ("{input.w}", json!({"w": 320}), "320"),
            ("{input.w}", json!({"w": 1.5}), "1.5"),
            ("{input.w}", json!({"w": 2.0}), "2"),
            (
                "{input.w}",
                json!({"w": 9_007_199_254_740_993_u64}),
                "9007199254740993",
            ),
            ("{input.w}", json!({"w": true}), "true"),
            (
                "--size={input.w}x{input.size.h}",
                json!({"w": 3, "size": {"h": 4}}),
                "--size=3x4",
            ),
            ("--w={input.w}", json!({"w": -3}), "--w=-3"),
            ("{{input.w}}", json!({}), "{input.w}"),
            ("{{{input.w}}}", json!({"w": 1}), "{1}"),
            ("}}{{", json!({}), "}{"),
            ("", json!({}), ""),
        ] {
            let filled = fill(template, input, false);
            assert_eq!(filled.as_deref(), Ok(argument), "{template}");
        }
        assert_eq!(
            fill("{input.w}", json!({"w": -3}), true).as_deref(),
            Ok("-3")
        );
    }

    #[test]
    fn a_value_that_cannot_or_should_not_be_an_argument_is_refused_by_its_field() {
        for (template, input, field, why) in [
            ("{input.w}", json!({}), "input.w", "required"),
            ("{input.w}", json!([1]), "input.w", "required"),
            ("{input.a.b}", json!({"a": 1}), "input.a.b", "required"),
            ("{input.w}", json!({"w": null}), "input.w", "null"),
            ("{input.w}", json!({"w": [1]}), "input.w", "array"),
            ("{input.w}", json!({"w": {}}), "input.w", "object"),
            ("{input.w}", json!({"w": "a\0b"}), "input.w", "NUL"),
            ("{input.w}", json!({"w": "-rf"}), "input.w", "`-`"),
            ("{input.w}", json!({"w": -1}), "input.w", "`-`"),
            ("{input.w}.png", json!({"w": "-o"}), "input.w", "`-`"),
            (
                "{input.e}{input.w}",
                json!({"e": "", "w": "-o"}),
                "input.w",
                "`-`",
            ),
            (
                "{input.w}",
                json!({"w": "x".repeat(ARGUMENT_BYTES_MAX + 1)}),
                "input",
                "131072",
            ),
        ] {
            let problems = fill(template, input, false).expect_err(template);
            assert_eq!(problems[0].0, field, "{problems:?}");
            assert!(problems[0].1.contains(why), "{problems:?}");
        }
        let longest = json!({"w": "x".repeat(ARGUMENT_BYTES_MAX)});
        assert!(fill("{input.w}", longest, false).is_ok());
    }

    #[test]
    fn an_input_without_fields_is_refused() {
        let template = Template::parse("{input.w}").expect("valid");
        let at = |input: Option<Payload>| {
            super::fill(&template, &Fields::of(input.as_ref()), false)
                .expect_err("no fields")
                .remove(0)
        };
        assert_eq!(at(None).0, "input.w");
        assert!(at(Some(Payload::text("w"))).1.contains("is text"));
        assert!(at(Some(Payload::data(vec![1_u8]))).1.contains("is bytes"));
    }
}
