//! `hotdump map`: a picture of physical memory, and of what of it a dump taken now would hold.

mod grid;
mod states;
mod svg;
mod terminal;

use std::path::PathBuf;

use anyhow::Context as _;
use elfcorehdr::{Header, PhysRange, RangeVec};
use host::{Host, HostError};
use serde::Serialize;

use crate::exit;
use crate::keeping::Keeping;
use crate::screen::Color;
use crate::text::{Range, print, print_json};
use crate::verify::{self, Headers};
use crate::whole::{self, Readers};
use grid::Grid;
use states::{Named, Part, Physical, View};

const ABOUT: &str = "\
Each cell of the picture is a stretch of physical memory and shows what most of it is; but memory that is missing from the crash \
header, and memory in the header that is gone, is shown however small it is. Stretches without memory are left out.

It takes root: only root is shown physical addresses. The SVG file is for its owner only. Whether a dump taken now would be \
complete is for `hotdump verify` to say: it looks at CPUs too, and its exit code is the answer.";

/// Options of `hotdump map`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Write the picture to FILE as SVG instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Print the stretches of memory as JSON instead
    #[arg(long)]
    json: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// What JSON has.
#[derive(Serialize)]
struct Listed<'a> {
    /// Whether a crash image is loaded.
    loaded: bool,
    /// Why it cannot be told what the header names.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<&'a str>,
    /// Stretches of one kind each, lowest first.
    memory: Vec<ListedPart>,
}

#[derive(Serialize)]
struct ListedPart {
    state: states::State,
    #[serde(flatten)]
    range: Range,
}

/// Draws the picture; returns the exit code.
///
/// # Errors
/// What of the machine could not be read; the file could not be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let (physical, view) = look(&Host::live()).map_err(anyhow::Error::msg)?;
    let parts = states::parts(&physical, &view);
    if args.json {
        print_json(&Listed {
            loaded: view != View::NotLoaded,
            remark: view.remark(),
            memory: parts
                .iter()
                .map(|Part { range, state }| ListedPart { state: *state, range: (*range).into() })
                .collect(),
        })?;
    } else if let Some(path) = &args.svg {
        let picture = svg::draw(&Grid::of(&parts), &parts, &view);
        whole::write(path, picture.as_bytes(), Readers::Owner)
            .with_context(|| format!("cannot write the picture to {}", path.display()))?;
    } else {
        print(terminal::draw(&Grid::of(&parts), &parts, &view, args.color.is_wanted()))?;
    }
    Ok(exit::OK)
}

/// Reads machine and header, until the machine was the same before and after the header was read.
fn look(host: &Host) -> Result<(Physical, View), String> {
    const TRIES: usize = 8;
    let told = |error: HostError| error.to_string();
    let mut before = physical(host).map_err(told)?;
    for _ in 0..TRIES {
        let view = view(host).map_err(told)?;
        let after = physical(host).map_err(told)?;
        if before == after {
            return Ok((after, view));
        }
        before = after;
    }
    Err("memory came or went whenever it was looked at: ask again".to_owned())
}

fn physical(host: &Host) -> Result<Physical, HostError> {
    let reservations = host.reservations()?;
    let offline = host.offline_ram()?;
    Ok(Physical {
        ram: host.iomem()?.ram(),
        expected: host.expected_ram()?.difference(&offline).collect(),
        offline,
        reserved: reservations
            .into_iter()
            .flat_map(|found| [Some(found.main), found.low])
            .flatten()
            .collect(),
        boot: host.boot_ram()?,
    })
}

fn view(host: &Host) -> Result<View, HostError> {
    let kexec = host.kexec()?;
    if !kexec.crash_loaded {
        return Ok(View::NotLoaded);
    }
    let Some(reservations) = host.reservations()? else {
        return Ok(View::Hidden("/proc/iomem shows no crash reservation".to_owned()));
    };
    let keeping = Keeping::read(host, kexec.elfcorehdr_size.is_some(), &mut Vec::new());
    let sight = verify::look(host, host.kcore().as_ref(), reservations.main, keeping.armed(), true);
    Ok(match sight.map(|sight| sight.headers) {
        Err(reason) => View::Hidden(reason),
        Ok(Headers::NoneInForce) => View::Named(Named::default()),
        Ok(Headers::InForce(found)) => named(&found.bytes),
        Ok(Headers::Candidates(found)) => match found.as_slice() {
            [found] => named(&found.bytes),
            several => View::Hidden(format!(
                "{} headers lie in the reservation, and which is in force is hidden",
                several.len()
            )),
        },
    })
}

/// What a header names; a header that no capture kernel takes names nothing.
fn named(bytes: &[u8]) -> View {
    let header = match Header::parse(bytes) {
        Ok(header) => header,
        Err(_) => return View::Named(Named::default()),
    };
    let read = header.loads().filter_map(|load| PhysRange::from_len(load.offset, load.size));
    View::Named(Named {
        named: header.loads().filter_map(|load| load.range()).collect::<RangeVec>(),
        read: read.collect(),
    })
}
