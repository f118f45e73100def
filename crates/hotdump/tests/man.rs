//! The man pages in docs/man are made from the definition of the command line; that of the kernel module from a text and the
//! table of reasons.

use std::collections::BTreeMap;
use std::path::Path;

/// Every page by its file name.
fn pages() -> BTreeMap<String, Vec<u8>> {
    let mut command = hotdump::command();
    command.build();
    let mut commands = vec![command];
    let mut at = 0;
    while let Some(command) = commands.get(at) {
        let below: Vec<_> =
            command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned().collect();
        commands.extend(below);
        at += 1;
    }
    commands
        .into_iter()
        .map(|command| {
            let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
            let mut page = Vec::new();
            // Without a date or the manual's name in the header: pages change only when the command line does.
            clap_mangen::Man::new(command).section("8").render(&mut page).unwrap();
            (format!("{name}.8"), page)
        })
        .chain([
            ("hotdump-module.8".to_owned(), module_page().into_bytes()),
            ("hotdump.toml.5".to_owned(), configuration_page().into_bytes()),
        ])
        .collect()
}

/// The page of the configuration.
fn configuration_page() -> String {
    let roff = |text: &str| text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    let keys: Vec<String> = hotdump::descriptions()
        .iter()
        .map(|key| {
            let values: Vec<String> = key
                .values
                .iter()
                .filter(|(_, meaning)| !meaning.is_empty())
                .map(|(name, meaning)| format!("\\fB{}\\fR: {}\n", roff(name), roff(meaning)))
                .collect();
            let words: Vec<&str> = key.values.iter().map(|(name, _)| name.as_str()).collect();
            let takes = if words.is_empty() { key.takes.to_owned() } else { words.join(", ") };
            format!(
                ".TP\n\\fB{}\\fR = {}\n{}.\n{}{}Takes {}{}.\nOption: \\fB{}\\fR.\n",
                roff(key.name),
                roff(&key.example),
                roff(&key.meaning),
                values.iter().map(|value| format!(".br\n{value}")).collect::<String>(),
                if values.is_empty() { "" } else { ".br\n" },
                roff(&takes),
                roff(&key.if_not_set().map(|unset| format!("; if not set: {unset}")).unwrap_or_default()),
                roff(&key.option),
            )
        })
        .collect();
    include_str!("hotdump.toml.5.in").replace("@KEYS@\n", &keys.concat())
}

/// The configuration as it is shipped has every key, and sets none.
#[test]
fn the_shipped_configuration_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/hotdump.toml");
    if std::env::var_os("HOTDUMP_WRITE_MAN").is_some() {
        std::fs::write(&file, hotdump::shipped()).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        hotdump::shipped(),
        "write it: HOTDUMP_WRITE_MAN=1 cargo test -p hotdump --test man"
    );
}

/// The page of the kernel module.
fn module_page() -> String {
    let reasons: Vec<String> = abi::Reason::ALL
        .iter()
        .map(|reason| format!("{}\n{}\n", *reason as u32, reason.text().replace('-', "\\-")))
        .collect();
    [
        ("@REASONS@", reasons.join(".TP\n").as_str()),
        ("@STATE@", abi::UEVENT_STATE),
        ("@ARMED@", abi::UEVENT_ARMED),
        ("@DISARMED@", abi::UEVENT_DISARMED),
        ("@REASON@", abi::UEVENT_REASON),
        ("@STALE@", abi::UEVENT_STALE),
    ]
    .iter()
    .fold(include_str!("hotdump-module.8.in").to_owned(), |page, (word, text)| page.replace(word, text))
}

/// What the module's sources define must be in its page.
#[test]
fn the_module_s_page_has_its_parameters_and_files() {
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kmod/shim");
    let source = std::fs::read_to_string(shim.join("main.c")).unwrap();
    let parameters: Vec<&str> = source
        .lines()
        .filter_map(|line| {
            line.strip_prefix("module_param_cb(").or_else(|| line.strip_prefix("module_param("))
        })
        .filter_map(|rest| rest.split(',').next())
        .collect();
    assert!(parameters.contains(&"memory"), "{parameters:?}");
    let page = module_page();
    for parameter in parameters {
        assert!(page.contains(&format!("\n\\fB{parameter}\\fR\n")), "{parameter} is not in hotdump-module.8");
    }
    let attributes = source.lines().filter_map(|line| line.strip_prefix("static DEVICE_ATTR_RO("));
    let attributes: Vec<String> = attributes
        .filter_map(|rest| rest.split(')').next())
        .map(|name| format!("/sys/class/misc/hotdump/{name}"))
        .collect();
    assert_eq!(attributes.len(), 2, "{attributes:?}");
    let others = [abi::DEVICE, "/sys/devices/system/memory/crash_hotplug"].map(str::to_owned);
    for file in attributes.into_iter().chain(others) {
        assert!(page.contains(&file), "{file} is not in hotdump-module.8");
    }
}

/// The udev rules take the words that the module sends, and read what it has in sysfs.
#[test]
fn the_udev_rules_know_the_module() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/98-hotdump.rules");
    let rules = std::fs::read_to_string(dist).unwrap();
    let let_go = format!(
        "ENV{{{}}}==\"{}\", ENV{{{}}}==\"1\"",
        abi::UEVENT_STATE,
        abi::UEVENT_DISARMED,
        abi::UEVENT_STALE
    );
    for part in [&*let_go, "ATTR{[misc/hotdump]follows_memory}", "ATTR{[misc/hotdump]follows_cpus}"] {
        assert!(rules.contains(part), "{part} is not in 98-hotdump.rules");
    }
    // Where this unit runs, the rules leave events to it.
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/hotdump-watch.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let directory = unit.lines().find_map(|line| line.strip_prefix("RuntimeDirectory=")).unwrap();
    assert!(rules.contains(&format!("TEST==\"/run/{directory}\", GOTO=\"hotdump_end\"")), "{directory}");
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
