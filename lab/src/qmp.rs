//! QEMU's control channel (QMP), as much of it as the lab uses.
//!
//! Written by hand over serde_json because generated clients are tied to the schema of one QEMU version and refuse
//! events that they do not know, while the lab runs whatever QEMU the machine has.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// An open channel.
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

/// A place for a CPU, as `query-hotpluggable-cpus` lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct CpuSlot {
    /// The device to add there.
    #[serde(rename = "type")]
    pub device: String,
    /// Where it goes: socket, core and thread numbers.
    pub props: serde_json::Map<String, Value>,
    /// The CPU that is there; none if the place is free.
    #[serde(rename = "qom-path")]
    pub taken: Option<String>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<QmpError>,
}

#[derive(Deserialize)]
struct QmpError {
    class: String,
    desc: String,
}

impl Qmp {
    /// Connects and leaves negotiation mode. Each answer must come within `patience`.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Qmp> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(patience))?;
        let mut qmp = Qmp { lines: BufReader::new(stream) };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "QEMU's greeting is not one: {greeting}");
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Adds a memory module of `bytes` bytes under the name `id`.
    pub fn add_dimm(&mut self, id: &str, bytes: u64) -> Result<()> {
        let backend = format!("{id}-ram");
        self.execute("object-add", &json!({"qom-type": "memory-backend-ram", "id": backend, "size": bytes}))?;
        self.execute("device_add", &json!({"driver": "pc-dimm", "id": id, "memdev": backend}))
    }

    /// Asks the guest to let go of a device.
    pub fn remove_device(&mut self, id: &str) -> Result<()> {
        self.execute("device_del", &json!({"id": id}))
    }

    /// Adds a CPU in the first free place, under the name `id`. Places are counted by their property `place`.
    pub fn add_cpu(&mut self, id: &str, place: &str) -> Result<()> {
        let slot = self.free_cpu_slots(place)?.into_iter().next();
        self.plug_cpu(id, slot.context("the machine has no free place for a CPU")?)
    }

    /// The places where a CPU can be added, lowest first. They are counted by their property `place`.
    pub(crate) fn free_cpu_slots(&mut self, place: &str) -> Result<Vec<CpuSlot>> {
        let mut slots: Vec<CpuSlot> = self.query("query-hotpluggable-cpus", &json!({}))?;
        slots.retain(|slot| slot.taken.is_none());
        slots.sort_by_key(|slot| slot.props.get(place).and_then(Value::as_u64));
        Ok(slots)
    }

    /// Adds a CPU in this place, under the name `id`.
    pub(crate) fn plug_cpu(&mut self, id: &str, slot: CpuSlot) -> Result<()> {
        let mut arguments = slot.props;
        arguments.insert("driver".into(), slot.device.into());
        arguments.insert("id".into(), id.into());
        self.execute("device_add", &arguments.into())
    }

    /// The registers of all CPUs, as QEMU's monitor prints them: where a guest stands that says nothing any more.
    pub fn registers(&mut self) -> Result<String> {
        self.query("human-monitor-command", &json!({"command-line": "info registers -a"}))
    }

    /// Has QEMU write the guest's state to a file, and waits until it is there. The guest stands still from then on.
    pub fn freeze(&mut self, file: &Path, patience: Duration) -> Result<()> {
        self.execute("migrate", &json!({"uri": format!("file:{}", file.display())}))?;
        self.wait_for_status("query-migrate", "completed", patience)
    }

    /// Waits until a guest that began in the middle runs.
    pub fn wait_until_it_runs(&mut self, patience: Duration) -> Result<()> {
        self.wait_for_status("query-status", "running", patience)
    }

    /// Why the machine ended, by the events that QEMU sent last: read until it closes the channel.
    pub fn last_words(&mut self) -> String {
        let mut words = Vec::new();
        while let Ok(line) = self.line() {
            // A watchdog, or a shutdown and who wanted it.
            if let Some(event @ ("SHUTDOWN" | "WATCHDOG" | "GUEST_PANICKED")) = line["event"].as_str() {
                words.push(format!("{event} {}", line["data"]));
            }
        }
        words.join(", ")
    }

    fn wait_for_status(&mut self, command: &str, wanted: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer: Value = self.query(command, &json!({}))?;
            let status = &answer["status"];
            if status == wanted {
                return Ok(());
            }
            ensure!(status != "failed" && start.elapsed() < patience, "{command} says {answer}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Carries out a command.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        self.query::<Value>(command, arguments).map(drop)
    }

    /// Carries out a command and gives its answer.
    pub(crate) fn query<T: DeserializeOwned>(&mut self, command: &str, arguments: &Value) -> Result<T> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        self.lines
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            let line = self.line().with_context(|| format!("waiting for QEMU's answer to {command}"))?;
            if line.get("event").is_some() {
                continue;
            }
            let reply: Reply = serde_json::from_value(line)?;
            if let Some(error) = reply.error {
                bail!("QEMU refuses {request}: {} ({})", error.desc, error.class);
            }
            let value = reply.value.with_context(|| format!("QEMU's answer to {command} is empty"))?;
            return Ok(serde_json::from_value(value)?);
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(!line.is_empty(), "QEMU closed its control channel");
        Ok(serde_json::from_str(&line)?)
    }
}
