//! `${NAME}`, `${NAME:-default}`, `${file:/path}` and `$$` in a string.
//!
//! What comes in is not looked at again: a `$` in a password from the environment or a file stays as it is.

/// Where substitutions get their values from.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What became of a string.
#[derive(Debug, PartialEq, Eq)]
pub struct Substituted {
    pub text: String,
    /// Whether anything was filled in.
    pub changed: bool,
}

/// Why a string could not be completed.
#[derive(Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub problem: String,
    pub remedy: String,
}

/// Fills in every `${...}` of `text`. As in a shell, a variable that is set but empty takes its default where it has one.
/// A default may itself hold substitutions. A `$` before anything but `{` and `$` is just that.
pub fn substitute(text: &str, variables: Variables) -> Result<Substituted, Unresolved> {
    let mut out = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing_brace(after).ok_or_else(|| Unresolved {
                problem: "a `${` without its `}`".into(),
                remedy: "close it, or write `$$` for a plain `$`".into(),
            })?;
            out.push_str(&value(&after[..end], variables)?);
            changed = true;
            rest = &after[end + 1..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(Substituted { text: out, changed })
}

/// Where the brace closes that was opened just before `text`; those opened within come first.
fn closing_brace(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn value(expression: &str, variables: Variables) -> Result<String, Unresolved> {
    if let Some(path) = expression.strip_prefix("file:") {
        return file(path);
    }
    let (name, default) = match expression.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (expression, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Unresolved {
            problem: format!("`${{{name}}}` is no variable's name"),
            remedy: "write ${NAME}, ${NAME:-default} or ${file:/path}, and `$$` for a plain `$`".into(),
        });
    }
    match (variables(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(substitute(default, variables)?.text),
        (None, None) => Err(Unresolved {
            problem: format!("the environment variable {name} is not set"),
            remedy: format!("set {name}, or give it a default: ${{{name}:-...}}"),
        }),
    }
}

/// The file's text without the line end that editors and `echo` leave behind.
fn file(path: &str) -> Result<String, Unresolved> {
    let mut text = std::fs::read_to_string(path).map_err(|error| Unresolved {
        problem: format!("cannot read the file {path}: {error}"),
        remedy: "check that the file exists and that the job's user may read it".into(),
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let variables = |name: &str| match name {
            "USER" => Some("ann".to_string()),
            "EMPTY" => Some(String::new()),
            "RAW" => Some("${USER}$$".to_string()),
            _ => None,
        };
        substitute(text, &variables).map(|done| done.text).map_err(|unresolved| unresolved.problem)
    }

    #[test]
    fn fills_in() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("a ${USER} b ${USER}", "a ann b ann"),
            ("${NONE:-x}", "x"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("${NONE:-${USER}/${NONE:-y}}", "ann/y"),
            ("${NONE:-a:-b}", "a:-b"),
            ("$$", "$"),
            ("$${USER}", "${USER}"),
            ("cost 5$ and $1", "cost 5$ and $1"),
            ("${RAW}", "${USER}$$"),
            ("é${USER}é", "éanné"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn says_what_is_missing() {
        for (text, expected) in [
            ("${NONE}", "the environment variable NONE is not set"),
            ("${NONE:-${OTHER}}", "the environment variable OTHER is not set"),
            ("${USER", "a `${` without its `}`"),
            ("${}", "`${}` is no variable's name"),
            ("${a b}", "`${a b}` is no variable's name"),
        ] {
            assert_eq!(filled(text), Err(expected.to_string()), "{text}");
        }
    }

    #[test]
    fn knows_whether_anything_was_filled_in() {
        assert!(!substitute("5$$", &|_| None).unwrap().changed);
        assert!(substitute("${A:-5}", &|_| None).unwrap().changed);
    }

    #[test]
    fn reads_files_without_their_last_line_end() {
        for (content, expected) in [("s3cret\n", "s3cret"), ("a\nb\r\n", "a\nb"), ("x\n\n", "x\n"), ("", "")] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            assert_eq!(filled(&format!("<${{file:{}}}>", file.path().display())), Ok(format!("<{expected}>")));
        }
        assert!(filled("${file:/no/such/file}").unwrap_err().contains("/no/such/file"));
    }
}
