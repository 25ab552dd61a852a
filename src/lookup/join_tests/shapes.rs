//! SQL by chance: whatever joins a query is made of, its rows are those of DataFusion's joins.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::sample::{select, subsequence};

use super::*;

/// How the campaigns meet the first lookup table, in SQL's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meeting {
    Inner,
    Left,
    Right,
    Full,
    LeftSemi,
    LeftAnti,
    RightSemi,
    RightAnti,
    Exists,
    NotExists,
    In,
}

use Meeting::*;

impl Meeting {
    const ALL: [Meeting; 11] =
        [Inner, Left, Right, Full, LeftSemi, LeftAnti, RightSemi, RightAnti, Exists, NotExists, In];

    /// Whether the table's columns can be seen behind it.
    fn shows_table(self) -> bool {
        matches!(self, Inner | Left | Right | Full)
    }
}

#[derive(Debug, Clone)]
struct Shape {
    meeting: Meeting,
    /// Of a join that shows the table: it comes first.
    is_turned: bool,
    key: &'static str,
    on: Vec<&'static str>,
    filter: Vec<&'static str>,
    columns: Vec<&'static str>,
    second: Option<(&'static str, &'static str)>,
    ending: Ending,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Plain,
    Distinct,
    Sorted,
    Grouped,
}

/// Conditions on the campaigns, on the table, and on both.
const OF_C: [&str; 4] = ["c.id > 2", "c.code IS NOT NULL", "c.name <> 'n4'", "c.id + coalesce(c.code, 1) < 9"];
const OF_L: [&str; 5] = ["l.id > 3", "l.code IS NULL", "l.id % 2 = 0", "l.name <> 'n4'", "l.code > 0 OR l.id <> 4"];
const OF_BOTH: [&str; 4] = [
    "l.id > c.id",
    "l.code > c.code OR c.id + l.id > 9",
    "l.name <> c.name",
    "coalesce(l.code, 0) = coalesce(c.code, 0)",
];
const SEEN_OF_C: [&str; 5] = ["c.id", "c.name", "c.code", "c.id + 1", "coalesce(c.name, '-')"];
const SEEN_OF_L: [&str; 6] = ["l.id", "l.name", "l.code", "c.id + l.id", "coalesce(l.code, -1)", "c.name || l.name"];
const KEYS_OF_M: [&str; 4] = ["m.code = c.code", "m.name = c.name", "m.code = l.code", "m.name = l.name"];

fn shape() -> impl Strategy<Value = Shape> {
    let ending =
        select(vec![Ending::Plain, Ending::Plain, Ending::Plain, Ending::Distinct, Ending::Sorted, Ending::Grouped]);
    // Inner joins have most to go wrong, and most that is done by index.
    let meeting = prop_oneof![Just(Inner), select(Meeting::ALL.to_vec())];
    (meeting, any::<bool>(), select(vec!["name", "code"]), ending).prop_flat_map(|(meeting, is_turned, key, ending)| {
        let few = |all: Vec<&'static str>| subsequence(all, 0..=2);
        let all = [&OF_C[..], &OF_L, &OF_BOTH].concat();
        let (seen, filters, keys) = match meeting.shows_table() {
            true => ([&SEEN_OF_C[..], &SEEN_OF_L].concat(), all.clone(), KEYS_OF_M.to_vec()),
            false => (SEEN_OF_C.to_vec(), OF_C.to_vec(), KEYS_OF_M[..2].to_vec()),
        };
        // Most joins have no condition beside the key.
        let on = prop_oneof![2 => Just(Vec::new()), 1 => few(all)];
        let second = proptest::option::weighted(0.3, (select(vec!["JOIN", "LEFT JOIN"]), select(keys)));
        (on, few(filters), subsequence(seen, 1..=4), second).prop_map(move |(on, filter, columns, second)| Shape {
            meeting,
            is_turned,
            key,
            on,
            filter,
            columns,
            second,
            ending,
        })
    })
}

impl Shape {
    fn sql(&self) -> String {
        let Shape { meeting, key, .. } = self;
        let mut on = vec![format!("c.{key} = l.{key}")];
        on.extend(self.on.iter().map(|condition| format!("({condition})")));
        let on = on.join(" AND ");
        let mut filter: Vec<String> = self.filter.iter().map(|condition| format!("({condition})")).collect();
        let (first, then) = if self.is_turned { ("l", "c") } else { ("c", "l") };
        let from = match meeting {
            Inner => format!("{first} JOIN {then} ON {on}"),
            Full => format!("{first} FULL JOIN {then} ON {on}"),
            Left => format!("{first} LEFT JOIN {then} ON {on}"),
            Right => format!("{first} RIGHT JOIN {then} ON {on}"),
            LeftSemi => format!("c LEFT SEMI JOIN l ON {on}"),
            LeftAnti => format!("c LEFT ANTI JOIN l ON {on}"),
            RightSemi => format!("l RIGHT SEMI JOIN c ON {on}"),
            RightAnti => format!("l RIGHT ANTI JOIN c ON {on}"),
            Exists | NotExists => {
                let not = if *meeting == NotExists { "NOT " } else { "" };
                filter.push(format!("{not}EXISTS (SELECT 1 FROM l WHERE {on})"));
                "c".into()
            }
            In => {
                let rest: Vec<&str> = self.on.iter().copied().filter(|condition| OF_L.contains(condition)).collect();
                let rest = if rest.is_empty() { String::new() } else { format!(" WHERE ({})", rest.join(") AND (")) };
                filter.push(format!("c.{key} IN (SELECT l.{key} FROM l{rest})"));
                "c".into()
            }
        };
        let second = self.second.map(|(join, on)| format!(" {join} m ON {on}")).unwrap_or_default();
        let filter = if filter.is_empty() { String::new() } else { format!(" WHERE {}", filter.join(" AND ")) };
        let mut columns: Vec<String> =
            self.columns.iter().enumerate().map(|(n, column)| format!("{column} AS x{n}")).collect();
        columns.extend(self.second.map(|_| "m.id AS y".to_owned()));
        let columns = columns.join(", ");
        match self.ending {
            Ending::Plain => format!("SELECT {columns} FROM {from}{second}{filter}"),
            Ending::Distinct => format!("SELECT DISTINCT {columns} FROM {from}{second}{filter}"),
            Ending::Sorted => format!("SELECT {columns} FROM {from}{second}{filter} ORDER BY x0"),
            Ending::Grouped => {
                let key = self.columns[0];
                format!("SELECT {key} AS k, count(*) AS n, max(c.id) AS m FROM {from}{second}{filter} GROUP BY {key}")
            }
        }
    }
}

#[test]
fn rows_of_sql_by_chance_are_those_of_the_joins_that_are_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let key = || proptest::option::weighted(0.8, 0usize..3);
    let given = (shape(), rows(12), rows(25), rows(8), 1usize..9, 1usize..9, key(), key());
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(400) };
    // How many queries there were, how many of them were joined by index, and of which kinds those joins were.
    let counts = RefCell::new(BTreeMap::new());
    let count = |what| *counts.borrow_mut().entry(what).or_insert(0) += 1;
    let outcome = TestRunner::new(config).run(&given, |(shape, c, l, m, batch_rows, cut, l_key, m_key)| {
        let sql = shape.sql();
        let (mut stock, mut indexed) =
            runtime.block_on(async { (Plan::new(&sql, false, 8192).await, Plan::new(&sql, true, batch_rows).await) });
        let plan = indexed.text();
        count("queries");
        for kind in ["LookupJoinExec", "kind=Inner", "kind=Outer", "kind=Semi", "kind=Anti"] {
            if plan.contains(kind) {
                count(kind);
            }
        }
        let came = LookupSet::new([table("l", &l, cut), table("m", &m, cut)]);
        let ordered = LookupSet::new([keyed("l", &l, cut, l_key), keyed("m", &m, cut, m_key)]);
        let campaigns: Vec<_> = c.chunks(cut).map(batch).collect();
        let expected = runtime.block_on(stock.run(&campaigns, &came));
        for lookups in [&came, &ordered] {
            let found = runtime.block_on(indexed.run(&campaigns, lookups));
            prop_assert_eq!(sorted(&found), sorted(&expected), "{}\n{}", sql, plan);
            if let Ending::Sorted = shape.ending {
                prop_assert_eq!(first_cells(&found), first_cells(&expected), "{}\n{}", sql, plan);
            }
        }
        Ok(())
    });
    outcome.expect("the same rows");
    let counts = counts.into_inner();
    println!("{counts:?}");
    assert!(counts["LookupJoinExec"] * 2 > counts["queries"], "{counts:?}");
    assert_eq!(counts.len(), 6, "every kind of join by index: {counts:?}");
}

/// In their order.
fn first_cells(batches: &[RecordBatch]) -> Vec<String> {
    lines(batches).iter().filter_map(|line| line.split('|').next()).map(str::to_owned).collect()
}

/// DataFusion's own rules would take one column for the other, see [`stock_rules`].
#[tokio::test]
async fn columns_of_one_name_on_both_sides_of_a_join_stay_apart() {
    let campaigns = [batch(&[(Some(0), Some(-2), 6)])];
    let lookups = LookupSet::new([table("l", &[(Some(0), Some(-2), 8), (Some(0), None, 9)], 5)]);
    let same_code = "c.code IS NOT NULL AND coalesce(l.code, 0) = coalesce(c.code, 0)";
    for (join, by_index) in [("c.name = l.name", 1), ("c.name = l.name AND l.id > 7", 0)] {
        for from in [format!("l RIGHT JOIN c ON {join}"), format!("c LEFT JOIN l ON {join}")] {
            let sql = format!("SELECT l.id FROM {from} WHERE {same_code}");
            for rule in [true, false] {
                let mut plan = Plan::new(&sql, rule, 8192).await;
                let found = if rule { by_index } else { 0 };
                assert_eq!(plan.text().matches("LookupJoinExec").count(), found, "{sql}\n{}", plan.text());
                assert_eq!(lines(&plan.run(&campaigns, &lookups).await), ["8"], "{sql}\n{}", plan.text());
            }
        }
    }
}
