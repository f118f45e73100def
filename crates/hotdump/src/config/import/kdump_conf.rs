//! kdump.conf of Fedora and its relatives: a directive and its value on each line.

use toml::Value;

use super::{Meaning, action, collector};

/// What a line means.
pub(super) fn meaning(line: &str) -> Meaning {
    // A comment may follow.
    let line = line.split(" #").next().unwrap_or_default().trim();
    let (directive, value) = match line.split_once(char::is_whitespace) {
        Some((directive, value)) => (directive, value.trim()),
        None => return Meaning::not("the line has no value"),
    };
    match directive {
        "path" => Meaning::text("path", value),
        "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "minix" | "f2fs" => Meaning::Keys(vec![
            ("target", Value::String(value.to_owned())),
            ("fs", Value::String(directive.to_owned())),
        ]),
        "ssh" => Meaning::text("target", format!("ssh://{value}")),
        "sshkey" => Meaning::text("sshkey", value),
        "nfs" => Meaning::text("target", format!("nfs:{value}")),
        "core_collector" => match value.strip_prefix("makedumpfile") {
            Some(options) => collector(options),
            None => Meaning::not("only makedumpfile's options have a meaning here; see the key \"command\""),
        },
        "extra_modules" => {
            let modules = value.split_whitespace().map(|module| Value::String(module.to_owned()));
            Meaning::Keys(vec![("add-modules", Value::Array(modules.collect()))])
        }
        "failure_action" | "default" => action("failure-action", value),
        "final_action" => action("final-action", value),
        "auto_reset_crashkernel" if value == "no" => {
            Meaning::anyway("crashkernel= is the administrator's: hotdump does not change it")
        }
        other => Meaning::not(why_not(other)),
    }
}

/// Why a directive has no place in hotdump's configuration.
fn why_not(directive: &str) -> &'static str {
    match directive {
        "raw" => "hotdump saves to files of a filesystem, not to a bare device",
        "virtiofs" => "virtiofs is no target of hotdump",
        "extra_bins" => "programs are put in one by one: see the key \"include\"",
        "kdump_pre" | "kdump_post" => {
            "hotdump runs no commands of others before or after it saves; see the key \"command\""
        }
        "dracut_args" => "the initramfs is hotdump's own, not dracut's",
        "force_rebuild" | "force_no_rebuild" => {
            "when the initramfs is written is up to hotdump-initramfs.service"
        }
        "auto_reset_crashkernel" => "crashkernel= is the administrator's: hotdump does not change it",
        "override_resettable" => "hotdump does not ask whether devices can be reset",
        "fence_kdump_args" | "fence_kdump_nodes" => "hotdump does not talk to fence agents",
        _ => "the directive is not known",
    }
}
