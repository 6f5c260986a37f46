//! The documents name files that are there.

use std::path::Path;

/// Each row of a table of claims ends in the tests that show it: paths from the top of the
/// repository, beside names of tests and commands.
#[test]
fn every_claim_of_the_failure_model_names_files_that_are_there() {
    let document = include_str!("../../docs/failure-model.md");
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = 0;
    for path in paths_of_claims(document) {
        assert!(top.join(path).exists(), "docs/failure-model.md: {path}");
        paths += 1;
    }
    println!("failure-model.md: {paths} paths");
    assert!(paths > 60);
}

fn paths_of_claims(document: &str) -> impl Iterator<Item = &str> {
    let rows = document
        .lines()
        .scan(false, |in_table, line| {
            *in_table = line.starts_with('|') && (*in_table || line == "| Claim | Test |");
            Some(in_table.then_some(line))
        })
        .flatten();
    let tests = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next());
    // What is between backquotes is every second part.
    let quoted = tests.flat_map(|tests| tests.split('`').skip(1).step_by(2));
    quoted.filter(|text| text.contains('/') || text.ends_with(".rs"))
}

#[test]
fn paths_are_looked_for_in_the_last_column_of_claims_alone() {
    let document = "`a/b`\n| Claim | Test |\n|---|---|\n| `c/d` holds | `e/f.rs`, `g_h`; `i.rs` |\n\n\
                    | Other | Table |\n|---|---|\n| k | `l/m` |\n";
    assert_eq!(
        paths_of_claims(document).collect::<Vec<_>>(),
        ["e/f.rs", "i.rs"]
    );
}
