use clap::CommandFactory;
use insta::assert_snapshot;

use super::*;

fn help(subcommand: Option<&str>) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let text = match subcommand {
        None => command.render_help(),
        Some(name) => command.find_subcommand_mut(name).unwrap().render_help(),
    };
    text.to_string()
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help_of_the_whole() {
    assert_snapshot!(help(None), @r#"
    Campaigns from Kafka, joined in SQL with cached Postgres tables, delivered exactly once to Postgres
    and Kafka

    Usage: dinnerbell [OPTIONS] <COMMAND>

    Commands:
      run      Run the job until SIGTERM or Ctrl-C; a second signal exits at once
      check    Prove settings, SQL, topics, table and rights, without moving an offset
      preview  Show what the SQL makes of campaigns; nothing is written anywhere
      init     Create what is missing: topics, tables, the ledger
      repair   Say what keeps the job from running, and put it right; without --execute nothing is
               changed
      demo     See it work: an in-process broker, a private Postgres, and a trickle of campaigns
      help     Print this message or the help of the given subcommand(s)

    Options:
          --config <FILE>  The settings file [default: dinnerbell.toml if there is one, otherwise
                           built-in defaults]
      -h, --help           Print help
      -V, --version        Print version
    "#);
}

#[test]
fn help_of_the_subcommands() {
    assert_snapshot!(help(Some("preview")), @r#"
    Show what the SQL makes of campaigns; nothing is written anywhere

    Usage: dinnerbell preview [OPTIONS] <FILE|--from-kafka <N>|--lookup <NAME>>

    Arguments:
      [FILE]  Campaigns, one JSON object a line; `-` for standard input

    Options:
          --from-kafka <N>           Read the last N campaigns of the topic instead, without joining the
                                     group
          --lookup <NAME>            Show the head and the size of this lookup table
          --lookup-file <NAME=FILE>  Take a lookup table from a file of JSON lines or CSV instead of
                                     Postgres; may be repeated
          --limit <N>                Show at most this many rows of each table [default: 20; with --json
                                     all]
          --now <UNIX_SECONDS>       What now() is, instead of the clock
          --json                     Print output rows as the Kafka sink sends them, one a line, and
                                     nothing else on standard output
          --config <FILE>            The settings file [default: dinnerbell.toml if there is one,
                                     otherwise built-in defaults]
      -h, --help                     Print help
    "#);
    assert_snapshot!(help(Some("init")), @r#"
    Create what is missing: topics, tables, the ledger

    Usage: dinnerbell init [OPTIONS]

    Options:
          --print          Print the DDL instead of running it
          --config <FILE>  The settings file [default: dinnerbell.toml if there is one, otherwise
                           built-in defaults]
      -h, --help           Print help
    "#);
    assert_snapshot!(help(Some("demo")), @r#"
    See it work: an in-process broker, a private Postgres, and a trickle of campaigns

    Usage: dinnerbell demo [OPTIONS]

    Options:
          --once           Stop after the last campaign, and verify that both sinks hold the same rows
          --config <FILE>  The settings file [default: dinnerbell.toml if there is one, otherwise
                           built-in defaults]
      -h, --help           Print help
    "#);
}

#[test]
fn flags_reach_their_command() {
    let parse = |line: &str| Cli::try_parse_from(line.split(' '));
    let cli = parse("dinnerbell preview --from-kafka 5 --lookup l --now -3 --config x.toml").unwrap();
    assert_eq!(cli.config, Some("x.toml".into()));
    let Command::Preview(preview) = cli.command else { panic!("{cli:?}") };
    assert_eq!(preview.from_kafka.map(NonZeroUsize::get), Some(5));
    assert_eq!((preview.lookup.as_deref(), preview.limit, preview.now), (Some("l"), None, Some(-3)));
    assert!(parse("dinnerbell --config x.toml run").is_ok());
    assert!(parse("dinnerbell preview f.json --from-kafka 5").is_err());
    assert!(parse("dinnerbell preview --from-kafka 0").is_err());
    assert!(parse("dinnerbell preview").is_err(), "nothing to show");
    assert!(parse("dinnerbell preview --lookup l --json").is_err(), "no rows to print");
    let cli = parse("dinnerbell preview - --json --lookup-file a=b=c --lookup-file d=e").unwrap();
    let Command::Preview(preview) = cli.command else { panic!("{cli:?}") };
    let file = |name: &str, file: &str| LookupFile { name: name.into(), file: file.into() };
    assert_eq!(preview.lookup_file, [file("a", "b=c"), file("d", "e")]);
    assert_eq!(parse("dinnerbell").unwrap_err().exit_code(), 2);
    assert_eq!(parse("dinnerbell walk").unwrap_err().exit_code(), 2);
}
