//! The text of a lookup query: places in it, and what of it is sent. What is left out leaves blanks behind, so that all else
//! stays where it is.

use datafusion::sql::sqlparser::ast::{Distinct, Query, Select, SetExpr, Statement};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// Line and column, from 1, of the `position`th character, from 1.
pub(super) fn line_and_column(text: &str, position: usize) -> (u64, u64) {
    let (mut line, mut column) = (1, 1);
    for character in text.chars().take(position.saturating_sub(1)) {
        if character == '\n' {
            line += 1;
            column = 1;
        } else {
            column += 1;
        }
    }
    (line, column)
}

/// The query without the semicolon that may end it; one in a string or a comment is none.
pub(super) fn without_semicolon(sql: &str) -> String {
    let tokens = tokens(sql);
    match tokens.last() {
        Some(last) if last.token == Token::SemiColon => blank(sql, last),
        _ => sql.to_owned(),
    }
}

/// The query without its `DISTINCT`, if it is one SELECT whose result is all that this makes of its rows: with neither an
/// order nor a limit, which would be about other rows without it.
pub(super) fn without_distinct(sql: &str) -> Option<String> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    let [Statement::Query(query)] = statements.as_slice() else { return None };
    let select = distinct_select(query)?;
    let start = select.select_token.0.span.start;
    let tokens = tokens(sql);
    let at = tokens.iter().position(|token| token.span.start == start)?;
    let distinct = tokens.get(at + 1)?;
    let is_distinct = matches!(&distinct.token, Token::Word(word) if word.keyword == Keyword::DISTINCT);
    is_distinct.then(|| blank(sql, distinct))
}

fn distinct_select(query: &Query) -> Option<&Select> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let whole = query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
        && query.pipe_operators.is_empty()
        && select.into.is_none();
    (whole && matches!(select.distinct, Some(Distinct::Distinct))).then_some(select)
}

/// All but white space and comments; none where the text cannot be read.
fn tokens(sql: &str) -> Vec<TokenWithSpan> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().unwrap_or_default();
    tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF)).collect()
}

/// The text with blanks in the place of a token that stands on one line.
fn blank(sql: &str, token: &TokenWithSpan) -> String {
    let (line, columns) = (token.span.start.line, token.span.start.column..token.span.end.column);
    let lines = (1..).zip(sql.split('\n')).map(|(number, text)| {
        let blanked = |(column, c)| if number == line && columns.contains(&column) { ' ' } else { c };
        (1..).zip(text.chars()).map(blanked).collect()
    });
    lines.collect::<Vec<String>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_semicolon_goes() {
        assert_eq!(without_semicolon("SELECT ';' ; -- done;\n"), "SELECT ';'   -- done;\n");
        assert_eq!(without_semicolon("SELECT 'é' AS \"a;\";"), "SELECT 'é' AS \"a;\" ");
        assert_eq!(without_semicolon("SELECT 1 -- a;"), "SELECT 1 -- a;");
    }

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(line_and_column("é\nab", 1), (1, 1));
        assert_eq!(line_and_column("é\nab", 4), (2, 2));
    }

    #[test]
    fn the_distinct_of_one_plain_select_goes() {
        for (sql, left) in [
            ("SELECT DISTINCT a, b FROM t", "SELECT          a, b FROM t"),
            ("-- é DISTINCT\nselect /* é */ distinct a\nFROM t;", "-- é DISTINCT\nselect /* é */          a\nFROM t;"),
            (
                "WITH x AS (SELECT DISTINCT a FROM t) SELECT DISTINCT a FROM x",
                "WITH x AS (SELECT DISTINCT a FROM t) SELECT          a FROM x",
            ),
            ("\tSELECT\r\n\tDISTINCT a\r\nFROM t\r\n", "\tSELECT\r\n\t         a\r\nFROM t\r\n"),
            (
                "/* /* SELECT DISTINCT */ */ SELECT DISTINCT 'ü' AS a",
                "/* /* SELECT DISTINCT */ */ SELECT          'ü' AS a",
            ),
            (
                "SELECT /* $$ */ DISTINCT $$DISTINCT$$ AS a, E'\\' DISTINCT' AS \"DISTINCT\"",
                "SELECT /* $$ */          $$DISTINCT$$ AS a, E'\\' DISTINCT' AS \"DISTINCT\"",
            ),
            (
                "SELECT DISTINCT a, count(DISTINCT b) FROM t GROUP BY a",
                "SELECT          a, count(DISTINCT b) FROM t GROUP BY a",
            ),
        ] {
            assert_eq!(without_distinct(sql).as_deref(), Some(left), "{sql}");
        }
    }

    #[test]
    fn every_other_query_stays_as_it_is() {
        for sql in [
            "SELECT a FROM t",
            "SELECT ALL a FROM t",
            "SELECT 'DISTINCT' FROM t",
            "SELECT DISTINCT ON (a) a, b FROM t",
            "SELECT DISTINCT a FROM t ORDER BY a",
            "SELECT DISTINCT a FROM t LIMIT 5",
            "SELECT DISTINCT a FROM t OFFSET 5",
            "SELECT DISTINCT a FROM t FETCH FIRST 5 ROWS ONLY",
            "SELECT DISTINCT a INTO x FROM t",
            "SELECT DISTINCT a FROM t UNION ALL SELECT a FROM u",
            "(SELECT DISTINCT a FROM t)",
            "SELECT a FROM (SELECT DISTINCT a FROM t) x",
            "TABLE t",
            "VALUES (1)",
            "SELECT DISTINCT a FROM t; SELECT 1",
            "SELECT DISTINCT a FROM",
        ] {
            assert_eq!(without_distinct(sql), None, "{sql}");
        }
    }
}
