//! Arguments of a command with placeholders for fields of the input: `{input.width}`. Parsed here, where
//! the configuration is checked; filled where commands are run.

/// One argument, parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    parts: Vec<Part>,
}

/// A stretch of an argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// The same for every job.
    Text(String),
    /// The path within the input: `input.a.b` is `["a", "b"]`.
    Field(Vec<String>),
}

impl Template {
    /// Parses an argument: text, `{input.field}` and `{input.field.field}`, `{{` and `}}` for braces.
    ///
    /// # Errors
    /// What is wrong with it and what is allowed: a sentence without its subject.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('\0') {
            return Err("has a NUL character; no argument can hold one".to_owned());
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let inner = rest.split_once('}').filter(|_| brace == "{");
            let Some((inner, after)) = inner else {
                return Err(
                    "has a brace that belongs to no placeholder; write {{ or }} for a brace"
                        .to_owned(),
                );
            };
            let path = parse_path(inner).ok_or_else(|| {
                format!(
                    "has {:?}, which is no placeholder; expected one such as {{input.width}}, or {{{{ and }}}} for braces",
                    format!("{{{inner}}}")
                )
            })?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Field(path));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// Text and fields, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether it is the same for every job.
    pub fn is_fixed(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }
}

fn parse_path(placeholder: &str) -> Option<Vec<String>> {
    let path: Vec<String> = placeholder
        .strip_prefix("input.")?
        .split('.')
        .map(str::to_owned)
        .collect();
    let is_name =
        |name: &String| !name.is_empty() && !name.contains(|c: char| c == '{' || c.is_whitespace());
    path.iter().all(is_name).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_name_a_field_of_the_input_and_braces_are_doubled() {
        let text = |text: &str| Part::Text(text.to_owned());
        let field = |path: &[&str]| Part::Field(path.iter().map(|&name| name.into()).collect());
        for (argument, parts) in [
            ("", vec![]),
            ("--width", vec![text("--width")]),
            ("{input.width}", vec![field(&["width"])]),
            (
                "a{input.a.b}c{input.d}",
                vec![text("a"), field(&["a", "b"]), text("c"), field(&["d"])],
            ),
            ("{{}}", vec![text("{}")]),
            ("{{input.x}}", vec![text("{input.x}")]),
            ("{{{input.x}}}", vec![text("{"), field(&["x"]), text("}")]),
            ("x}}y", vec![text("x}y")]),
        ] {
            let template = Template::parse(argument).expect(argument);
            assert_eq!(template.parts(), parts, "{argument}");
            let fixed = parts.iter().all(|part| matches!(part, Part::Text(_)));
            assert_eq!(template.is_fixed(), fixed, "{argument}");
        }
    }

    #[test]
    fn a_malformed_argument_is_refused_and_says_what_a_brace_is() {
        for bad in [
            "{",
            "}",
            "{}",
            "a}b",
            "{width}",
            "{input}",
            "{input.}",
            "{input.a",
            "{input.a..b}",
            "{input.a b}",
            "{print $1}",
            "a\0",
        ] {
            let error = Template::parse(bad).expect_err(bad);
            assert!(error.contains("brace") || error.contains("NUL"), "{error}");
        }
    }
}
