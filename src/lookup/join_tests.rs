//! Lookup joins beside the joins that they replace: the same SQL, tables and rows, with the rule and without.

mod shapes;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::TaskContext;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// A text key, a number key and a number of its own.
type Row = (Option<u8>, Option<i64>, i64);

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8View, true),
        Field::new("code", DataType::Int64, true),
        Field::new("id", DataType::Int64, false),
    ]))
}

/// Ids in all spellings, each a name of its own; short and long names; an id that a cell cannot hold.
fn name(key: u8) -> String {
    let id = format!("0123e456-789a-bcde-f012-3456789abc{:02x}", key / 8);
    match key % 8 {
        0 => id,
        1 => id.to_uppercase(),
        2 => id.replace('-', ""),
        3 => format!("{{{id}}}"),
        4 => format!("n{key}"),
        5 => format!("ресторан «У \t{key}»"),
        6 => id.replace("0123e456", "74657874"),
        _ => id.replace('a', "A"),
    }
}

fn batch(rows: &[Row]) -> RecordBatch {
    let names: StringViewArray = rows.iter().map(|row| row.0.map(name)).collect();
    let codes: Int64Array = rows.iter().map(|row| row.1).collect();
    let ids: Int64Array = rows.iter().map(|row| Some(row.2)).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(codes), Arc::new(ids)];
    RecordBatch::try_new(schema(), columns).expect("a batch")
}

/// A table that came in batches of `size` rows, in the order of `key`.
fn keyed(table: &str, rows: &[Row], size: usize, key: Option<usize>) -> LookupTable {
    LookupTable::new(table, schema(), rows.chunks(size.max(1)).map(batch).collect(), key).expect("a table")
}

/// As [`keyed`], as it came.
fn table(table: &str, rows: &[Row], size: usize) -> LookupTable {
    keyed(table, rows, size, None)
}

/// The campaigns of a run, as the job's engine binds them.
struct Campaigns(Vec<RecordBatch>);

fn session(rule: bool, batch_rows: usize) -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(batch_rows);
    config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
    config.options_mut().optimizer.enable_join_dynamic_filter_pushdown = false;
    let rules = if rule { optimizer_rules() } else { rule::stock_rules() };
    let state =
        SessionStateBuilder::new_with_default_features().with_config(config).with_physical_optimizer_rules(rules);
    let context = SessionContext::new_with_state(state.build());
    let campaigns = BoundTable::new("c", schema(), 1_000, |context, _| {
        Ok(context.session_config().get_extension::<Campaigns>().expect("campaigns").0.clone())
    });
    context.register_table("c", Arc::new(campaigns)).expect("a table");
    for lookup in ["l", "m"] {
        let lookup_table = BoundTable::lookup(lookup, schema(), 1_000_000);
        context.register_table(lookup, Arc::new(lookup_table)).expect("a table");
    }
    context
}

struct Plan {
    context: SessionContext,
    plan: Arc<dyn ExecutionPlan>,
}

impl Plan {
    async fn new(sql: &str, rule: bool, batch_rows: usize) -> Plan {
        let context = session(rule, batch_rows);
        let plan = context.sql(sql).await.expect("SQL").create_physical_plan().await.expect("a plan");
        Plan { context, plan }
    }

    fn text(&self) -> String {
        displayable(self.plan.as_ref()).indent(false).to_string()
    }

    async fn run(&mut self, campaigns: &[RecordBatch], lookups: &LookupSet) -> Vec<RecordBatch> {
        self.plan = reset_plan_states(Arc::clone(&self.plan)).expect("a plan");
        let config = self.context.copied_config().with_extension(Arc::new(Campaigns(campaigns.to_vec())));
        let task = TaskContext::default()
            .with_session_config(config.with_extension(Arc::new(lookups.clone())))
            .with_runtime(self.context.runtime_env());
        let batches = collect(Arc::clone(&self.plan), Arc::new(task)).await.expect("rows");
        assert!(batches.iter().all(|batch| batch.schema() == self.plan.schema()));
        batches
    }

    /// The sum of a metric over the lookup joins.
    fn metric(&self, name: &str) -> usize {
        fn sum(plan: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
            let own = plan.metrics().and_then(|metrics| metrics.sum_by_name(name)).map_or(0, |value| value.as_usize());
            own + plan.children().into_iter().map(|child| sum(child, name)).sum::<usize>()
        }
        sum(&self.plan, name)
    }
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let line = |batch: &RecordBatch, row: usize| {
        let cells = batch.columns().iter().map(|column| {
            let formatter = ArrayFormatter::try_new(column.as_ref(), &options).expect("a formatter");
            formatter.value(row).to_string()
        });
        cells.collect::<Vec<_>>().join("|")
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| line(batch, row))).collect()
}

fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = lines(batches);
    lines.sort();
    lines
}

/// SQL and how many lookup joins it should have.
const SHAPES: [(&str, usize); 35] = [
    ("SELECT * FROM c JOIN l ON c.name = l.name", 1),
    ("SELECT * FROM l JOIN c ON c.name = l.name", 1),
    ("SELECT l.id, c.id, c.name FROM c JOIN l USING (name)", 1),
    ("SELECT c.id + l.id AS x FROM c JOIN l ON c.code = l.code WHERE c.id > 2", 1),
    ("SELECT * FROM c LEFT JOIN l ON c.name = l.name", 1),
    ("SELECT * FROM l RIGHT JOIN c ON c.code = l.code", 1),
    ("SELECT c.id, coalesce(l.id, -1) AS x FROM c LEFT JOIN l ON c.code = l.code WHERE l.id IS NULL OR l.id > 3", 1),
    ("SELECT c.id FROM c LEFT SEMI JOIN l ON c.name = l.name", 1),
    ("SELECT c.id FROM l RIGHT SEMI JOIN c ON c.name = l.name", 1),
    ("SELECT * FROM c LEFT ANTI JOIN l ON c.name = l.name", 1),
    ("SELECT * FROM l RIGHT ANTI JOIN c ON c.code = l.code", 1),
    ("SELECT c.id FROM c WHERE EXISTS (SELECT 1 FROM l WHERE l.name = c.name)", 1),
    ("SELECT c.id FROM c WHERE NOT EXISTS (SELECT 1 FROM l WHERE l.code = c.code)", 1),
    ("SELECT c.id FROM c WHERE c.name IN (SELECT name FROM l)", 1),
    ("SELECT c.id, l.id AS l, m.id AS m FROM c JOIN l ON c.name = l.name JOIN m ON m.code = l.code", 2),
    ("SELECT c.id, a.id AS a, b.id AS b FROM c JOIN l a ON c.name = a.name LEFT JOIN l b ON b.code = a.code", 2),
    ("SELECT c.id, l.id AS l FROM c JOIN l ON c.name = l.name AND l.id > c.id", 1),
    ("SELECT l.id AS l FROM l JOIN c ON c.name = l.name AND (l.code > c.code OR c.id + l.id > 9)", 1),
    ("SELECT count(*) AS n FROM c JOIN l ON c.name = l.name", 1),
    ("SELECT c.name, count(l.id) AS n FROM c LEFT JOIN l ON c.name = l.name GROUP BY c.name", 1),
    ("SELECT * FROM c JOIN l ON c.name = l.name WHERE l.id > 3", 1),
    ("SELECT c.id FROM l JOIN c ON c.name = l.name WHERE l.code > 0 AND c.code < 2", 1),
    ("SELECT l.name, l.id FROM c JOIN l USING (name) WHERE l.id < 8 AND (l.code > 0 OR l.id <> 4) AND c.id > 1", 1),
    // Shapes of DataFusion's join.
    ("SELECT * FROM c JOIN l ON c.name = l.name AND c.code = l.code", 0),
    ("SELECT c.id FROM c JOIN l ON c.name = l.name WHERE l.id <> 0 AND c.id / l.id > 1", 0),
    ("SELECT c.id FROM c WHERE c.name IN (SELECT name FROM l WHERE id > 3)", 0),
    ("SELECT c.id, l.id AS l FROM c LEFT JOIN l ON c.name = l.name AND l.id > 3", 0),
    ("SELECT c.id, l.id AS l FROM c LEFT JOIN l ON c.name = l.name AND l.id > c.id", 0),
    ("SELECT c.id FROM c JOIN l ON c.name = l.name WHERE l.id > 10 * random()", 0),
    ("SELECT * FROM c JOIN l ON c.name = upper(l.name)", 0),
    ("SELECT * FROM c JOIN l ON c.code = l.code + 1", 0),
    ("SELECT * FROM c FULL JOIN l ON c.name = l.name", 0),
    ("SELECT * FROM c RIGHT JOIN l ON c.name = l.name", 0),
    ("SELECT c.id FROM c WHERE c.code NOT IN (SELECT code FROM l)", 0),
    ("SELECT * FROM c JOIN l ON c.name IS NOT DISTINCT FROM l.name", 0),
];

#[tokio::test]
async fn the_plan_shows_which_join_was_taken() {
    for (sql, joins) in SHAPES {
        let text = Plan::new(sql, true, 8192).await.text();
        assert_eq!(text.matches("LookupJoinExec: lookup=").count(), joins, "{sql}\n{text}");
        let scans = text.matches("BoundScan: l").count() + text.matches("BoundScan: m").count();
        assert_eq!(scans, usize::from(joins == 0), "a joined table is not scanned: {sql}\n{text}");
        assert!(!Plan::new(sql, false, 8192).await.text().contains("LookupJoinExec"));
    }
    let text = Plan::new("SELECT l.id, c.code FROM c JOIN l USING (name)", true, 8192).await.text();
    let join = "LookupJoinExec: lookup=l, kind=Inner, on=[(name@0, name@0)], columns=[id, code]";
    assert!(text.contains(join), "unwanted columns are not gathered: {text}");
}

#[tokio::test]
async fn the_plan_tells_what_tables_are_joined_by() {
    let sql = "SELECT c.id, a.id AS a, m.id AS m FROM c JOIN l a ON c.name = a.name JOIN l b ON b.code = a.code
               LEFT JOIN (SELECT id, code AS other FROM m) m ON m.other = b.code";
    let keys = lookup_keys(&Plan::new(sql, true, 8192).await.plan);
    assert_eq!(keys, LookupKeys::from([("l".to_owned(), vec![0, 1]), ("m".to_owned(), vec![1])]));
    let none = lookup_keys(&Plan::new("SELECT * FROM l", true, 8192).await.plan);
    assert_eq!(none, LookupKeys::new());
}

#[tokio::test]
async fn the_plan_tells_which_tables_are_read_whole() {
    for (sql, tables) in [
        ("SELECT * FROM c JOIN l ON c.name = l.name", &[][..]),
        ("SELECT c.id FROM c JOIN l ON c.name = upper(l.name) JOIN m ON m.code = c.code", &["l"]),
        ("SELECT c.id FROM c, l, m", &["l", "m"]),
        ("SELECT c.id FROM c JOIN l ON c.name = l.name WHERE c.id > (SELECT max(id) FROM l)", &["l"]),
    ] {
        let plan = Plan::new(sql, true, 8192).await;
        assert_eq!(scanned_lookups(&plan.plan).into_iter().collect::<Vec<_>>(), tables, "{sql}\n{}", plan.text());
    }
}

#[tokio::test]
async fn a_scan_comes_in_small_batches_whatever_order_the_rows_are_in() {
    let rows = spread(7, 3_000);
    let expected = sorted(&[batch(&rows)]);
    for key in [None, Some(0), Some(1), Some(2)] {
        let lookups = LookupSet::new([keyed("l", &rows, 1_000, key)]);
        let batches = Plan::new("SELECT * FROM l", true, 8192).await.run(&[], &lookups).await;
        assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [8192, 8192, 4616]);
        assert_eq!(sorted(&batches), expected);
        let count = Plan::new("SELECT count(*) AS n, max(id) AS m FROM l", true, 8192).await.run(&[], &lookups).await;
        assert_eq!(lines(&count), ["21000|20999"]);
    }
}

fn rows(most: usize) -> impl Strategy<Value = Vec<Row>> {
    let row = (proptest::option::weighted(0.9, 0u8..9), proptest::option::weighted(0.8, -2i64..4), 0i64..10);
    proptest::collection::vec(row, 0..most)
}

/// Plans of all shapes that have a lookup join. They are made once and run for each case: planning takes most of the
/// time otherwise.
async fn plans(rule: bool, batch_rows: usize) -> Vec<(&'static str, Plan)> {
    let mut plans = Vec::new();
    for (sql, _) in SHAPES.into_iter().filter(|(_, joins)| *joins > 0) {
        plans.push((sql, Plan::new(sql, rule, batch_rows).await));
    }
    plans
}

#[test]
fn rows_are_those_of_the_join_that_is_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let stock = RefCell::new(runtime.block_on(plans(false, 8192)));
    let by_index = [1, 2, 5, 8].map(|batch_rows| RefCell::new(runtime.block_on(plans(true, batch_rows))));
    let key = || proptest::option::weighted(0.8, 0usize..3);
    let given = (rows(12), rows(25), rows(8), 0..by_index.len(), 1usize..9, key(), key());
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(128) };
    let outcome = TestRunner::new(config).run(&given, |(c, l, m, size, cut, l_key, m_key)| {
        let came = LookupSet::new([table("l", &l, cut), table("m", &m, cut)]);
        let ordered = LookupSet::new([keyed("l", &l, cut, l_key), keyed("m", &m, cut, m_key)]);
        let campaigns: Vec<_> = c.chunks(cut).map(batch).collect();
        let (mut stock, mut by_index) = (stock.borrow_mut(), by_index[size].borrow_mut());
        for ((sql, stock), (_, by_index)) in stock.iter_mut().zip(by_index.iter_mut()) {
            prop_assert_eq!(by_index.plan.schema(), stock.plan.schema());
            let expected = sorted(&runtime.block_on(stock.run(&campaigns, &came)));
            for lookups in [&came, &ordered] {
                let batches = runtime.block_on(by_index.run(&campaigns, lookups));
                prop_assert_eq!(&sorted(&batches), &expected, "{}", sql);
            }
            prop_assert_eq!(&sorted(&runtime.block_on(stock.run(&campaigns, &ordered))), &expected, "{}, scanned", sql);
        }
        Ok(())
    });
    outcome.expect("the same rows");
}

/// `keys` keys of `each` rows, the rows of a key spread over the table.
fn spread(keys: i64, each: i64) -> Vec<Row> {
    (0..keys * each).map(|row| (Some((row % keys % 250) as u8), Some(row % keys), row)).collect()
}

#[tokio::test]
async fn a_key_of_many_rows_comes_out_in_small_batches_and_in_order() {
    for key in [None, Some(1)] {
        many_rows(&LookupSet::new([keyed("l", &spread(3, 1_000), 100, key)])).await;
    }
}

async fn many_rows(lookups: &LookupSet) {
    let campaigns =
        [batch(&[(None, Some(2), 1), (None, Some(7), 2), (None, Some(0), 3)]), batch(&[(None, Some(2), 4)])];
    let mut plan = Plan::new("SELECT c.id, l.id AS l FROM c LEFT JOIN l ON c.code = l.code", true, 64).await;
    let batches = plan.run(&campaigns, lookups).await;
    assert!(batches.iter().all(|batch| (1..=64).contains(&batch.num_rows())));
    // Of 2001 rows and of 1000: batches are full until their input batch ends.
    assert_eq!(batches.len(), 2001usize.div_ceil(64) + 1000usize.div_ceil(64));
    let rows_of = |campaign: i64, code: i64| (0..1_000).map(move |n| format!("{campaign}|{}", n * 3 + code));
    let expected: Vec<_> =
        rows_of(1, 2).chain(["2|NULL".to_owned()]).chain(rows_of(3, 0)).chain(rows_of(4, 2)).collect();
    assert_eq!(lines(&batches), expected);
}

#[tokio::test]
async fn the_rows_that_are_touched_do_not_grow_with_the_table() {
    let campaigns = [batch(&[(None, Some(1), 1), (None, Some(5), 2), (None, Some(-1), 3)])];
    let mut plan = Plan::new("SELECT c.id, l.id AS l, l.name FROM c JOIN l ON c.code = l.code", true, 8192).await;
    for (keys, key) in [10, 1_000, 10_000].into_iter().flat_map(|keys| [(keys, None), (keys, Some(1))]) {
        let lookups = LookupSet::new([keyed("l", &spread(keys, 4), 4096, key)]);
        for _ in 0..2 {
            let batches = plan.run(&campaigns, &lookups).await;
            assert_eq!(lines(&batches).len(), 8);
            let held: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
            assert!(held < 4096, "{held} bytes held for 8 rows");
            assert_eq!(plan.metric("lookup_rows"), 8, "{keys} keys");
        }
    }
}

#[tokio::test]
async fn one_plan_serves_refreshed_tables_and_the_index_is_ready_when_they_come() {
    let campaigns = [batch(&[(Some(1), None, 1)])];
    let mut plan = Plan::new("SELECT c.id, l.id AS l FROM c JOIN l ON c.name = l.name", true, 8192).await;
    let old = LookupSet::new([table("l", &[(Some(1), None, 10), (None, None, 11)], 10)]);
    let new = LookupSet::new([table("l", &[(Some(2), None, 20), (Some(1), None, 21), (Some(1), None, 22)], 2)]);
    assert!(old.get("l").expect("l").built_index(0).is_none(), "no plan has asked for it");
    assert_eq!(lines(&plan.run(&campaigns, &old).await), ["1|10"]);
    assert!(old.get("l").expect("l").index_bytes() > 0);
    let loaded_for_it = keyed("l", &[(Some(1), None, 12)], 1, Some(0));
    assert!(loaded_for_it.built_index(0).is_some() && loaded_for_it.index_bytes() == 0);
    assert_eq!(lines(&plan.run(&campaigns, &LookupSet::new([loaded_for_it])).await), ["1|12"]);
    new.index_as(&old);
    let built: Vec<_> = (0..3).map(|column| new.get("l").expect("l").built_index(column).is_some()).collect();
    assert_eq!(built, [true, false, false]);
    assert_eq!(lines(&plan.run(&campaigns, &new).await), ["1|21", "1|22"]);
    assert_eq!(lines(&plan.run(&campaigns, &old).await), ["1|10"]);
    let empty = LookupSet::new([LookupTable::empty("l", schema())]);
    assert_eq!(plan.run(&campaigns, &empty).await.len(), 0);
}

#[tokio::test]
async fn times_beside_the_stock_join() {
    let campaigns = [batch(&[(None, Some(1), 1)])];
    for keys in [1_000, 100_000] {
        let lookups = LookupSet::new([keyed("l", &spread(keys, 10), 1 << 16, Some(1))]);
        for rule in [true, false] {
            let sql = "SELECT c.id, l.id AS l, l.name FROM c JOIN l ON c.code = l.code";
            let mut plan = Plan::new(sql, rule, 8192).await;
            for run in 0..3 {
                let started = Instant::now();
                let rows: usize = plan.run(&campaigns, &lookups).await.iter().map(RecordBatch::num_rows).sum();
                println!("{} rows, by index: {rule}, run {run}: {:?}", keys * 10, started.elapsed());
                assert_eq!(rows, 10);
            }
        }
    }
}
