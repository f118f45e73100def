//! The interface as a C header.

use core::fmt;

/// A structure as C sees it.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) fields: &'static [Field],
}

/// A field as C sees it.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) array: &'static str,
    pub(crate) offset: usize,
}

/// Writes the C header of this interface.
///
/// # Errors
/// Those of `out`.
pub fn c_header(out: &mut impl fmt::Write) -> fmt::Result {
    writeln!(out, "/* SPDX-License-Identifier: GPL-2.0 OR MIT */")?;
    writeln!(out, "/* Written by the crate abi: `cargo run -p abi --example c_header`. */")?;
    writeln!(
        out,
        "#ifndef HOTDUMP_ABI_H\n#define HOTDUMP_ABI_H\n\n#include <linux/ioctl.h>\n#include <linux/types.h>\n"
    )?;
    writeln!(out, "#define HOTDUMP_VERSION {}", crate::VERSION)?;
    writeln!(out, "#define HOTDUMP_FOLLOW_MEMORY {}", crate::FOLLOW_MEMORY)?;
    writeln!(out, "#define HOTDUMP_FOLLOW_CPUS {}", crate::FOLLOW_CPUS)?;
    writeln!(out, "#define HOTDUMP_MAX_EXCLUDED {}", crate::MAX_EXCLUDED)?;
    for (name, text) in [
        ("STATE", crate::UEVENT_STATE),
        ("ARMED", crate::UEVENT_ARMED),
        ("DISARMED", crate::UEVENT_DISARMED),
        ("REASON", crate::UEVENT_REASON),
        ("STALE", crate::UEVENT_STALE),
    ] {
        writeln!(out, "#define HOTDUMP_UEVENT_{name} \"{text}\"")?;
    }
    for reason in crate::Reason::ALL {
        write!(out, "#define HOTDUMP_REASON")?;
        upper_case(out, reason.name())?;
        writeln!(out, " {}", *reason as u32)?;
    }
    // Both ends must have the same numbers, so they stand here as the crate has them; the last lines hold them
    // against the kernel's.
    writeln!(out, "#ifdef __powerpc__")?;
    ioctls(out, crate::POWERPC)?;
    writeln!(out, "#else")?;
    ioctls(out, crate::GENERIC)?;
    writeln!(out, "#endif")?;
    for shape in [crate::Range::SHAPE, crate::Arm::SHAPE, crate::Status::SHAPE] {
        structure(out, &shape)?;
    }
    writeln!(out)?;
    for (name, expected) in [
        ("ARM", "_IOWR('H', 1, struct hotdump_arm)"),
        ("DISARM", "_IO('H', 2)"),
        ("STATUS", "_IOR('H', 3, struct hotdump_status)"),
    ] {
        writeln!(out, "_Static_assert(HOTDUMP_{name} == {expected}, \"{name}\");")?;
    }
    writeln!(out, "\n#endif")
}

fn ioctls(out: &mut impl fmt::Write, directions: crate::Directions) -> fmt::Result {
    let numbers =
        [("ARM", directions.arm()), ("DISARM", directions.disarm()), ("STATUS", directions.status())];
    numbers.into_iter().try_for_each(|(name, number)| writeln!(out, "#define HOTDUMP_{name} {number:#010x}u"))
}

/// Writes the name of a Rust variant as C names constants, `_LIKE_THIS`.
fn upper_case(out: &mut impl fmt::Write, name: &str) -> fmt::Result {
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            out.write_char('_')?;
        }
        out.write_char(letter.to_ascii_uppercase())?;
    }
    Ok(())
}

fn structure(out: &mut impl fmt::Write, shape: &Shape) -> fmt::Result {
    writeln!(out, "\nstruct {} {{", shape.name)?;
    for field in shape.fields {
        writeln!(out, "\t{} {}{};", field.kind, field.name, field.array)?;
    }
    writeln!(out, "}};")?;
    writeln!(out, "_Static_assert(sizeof(struct {}) == {}, \"size\");", shape.name, shape.size)?;
    for Field { name, offset, .. } in shape.fields {
        writeln!(
            out,
            "_Static_assert(__builtin_offsetof(struct {}, {name}) == {offset}, \"{name}\");",
            shape.name
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_modules_header_is_the_one_of_this_crate() {
        let mut text = String::new();
        super::c_header(&mut text).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kmod/shim/abi.h");
        let file = std::fs::read_to_string(path).unwrap();
        assert_eq!(file, text, "write it anew: cargo run -p abi --example c_header > kmod/shim/abi.h");
    }
}
