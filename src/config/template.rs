//! Whether the placeholders of a command's argument are well formed. Stands in for the command
//! executor's own parser, and is the one place to change once that exists.

/// Checks one argument: `{input.width}` is a placeholder, `{{` and `}}` are braces.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(argument: &str) -> Result<(), String> {
    let mut rest = argument;
    while let Some(at) = rest.find(['{', '}']) {
        let tail = &rest[at..];
        if tail.starts_with("{{") || tail.starts_with("}}") {
            rest = &tail[2..];
            continue;
        }
        let end = tail.find('}').filter(|_| tail.starts_with('{'));
        let Some(end) = end else {
            return Err(
                "has a brace that belongs to no placeholder; write {{ or }} for a brace".to_owned(),
            );
        };
        let inner = &tail[1..end];
        let is_path = inner.strip_prefix("input.").is_some_and(|path| {
            path.split('.')
                .all(|part| !part.is_empty() && !part.contains(char::is_whitespace))
        });
        if !is_path {
            return Err(format!(
                "has {:?}, which is no placeholder; expected one such as {{input.width}}, or {{{{ and }}}} for braces",
                &tail[..=end]
            ));
        }
        rest = &tail[end + 1..];
    }
    Ok(())
}

/// Whether an argument that passed [`check`] has a placeholder.
pub(super) fn has_placeholder(argument: &str) -> bool {
    argument.replace("{{", "").contains('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_name_a_field_of_the_input_and_braces_are_doubled() {
        for good in [
            "--width",
            "{input.width}",
            "a{input.a.b}c{input.d}",
            "{{}}",
            "{{input.x}}",
            "x}}y",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "{",
            "}",
            "{}",
            "{width}",
            "{input}",
            "{input.}",
            "{input.a..b}",
            "{print $1}",
            "a}b",
            "{input.a",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(has_placeholder("a{input.b}") && !has_placeholder("{{a}}"));
    }
}
