//! The man pages in docs/man are made from the definition of the command line.

use std::collections::BTreeMap;
use std::path::Path;

/// Every page by its file name.
fn pages() -> BTreeMap<String, Vec<u8>> {
    let mut command = hotdump::command();
    command.build();
    let subcommands = command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned();
    std::iter::once(command.clone())
        .chain(subcommands)
        .map(|command| {
            let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
            let mut page = Vec::new();
            // Without a date or the manual's name in the header: pages change only when the command line does.
            clap_mangen::Man::new(command).section("8").render(&mut page).unwrap();
            (format!("{name}.8"), page)
        })
        .collect()
}

#[test]
fn man_pages_are_current() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man");
    if std::env::var_os("HOTDUMP_WRITE_MAN").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, page) in pages() {
            std::fs::write(dir.join(name), page).unwrap();
        }
    }
    let there: BTreeMap<String, Vec<u8>> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    let names = |pages: &BTreeMap<String, Vec<u8>>| pages.keys().cloned().collect::<Vec<_>>();
    let advice = "write them: HOTDUMP_WRITE_MAN=1 cargo test -p hotdump --test man";
    assert_eq!(names(&there), names(&pages()), "{advice}");
    for (name, page) in pages() {
        assert!(there[&name] == page, "docs/man/{name} is out of date; {advice}");
    }
}
