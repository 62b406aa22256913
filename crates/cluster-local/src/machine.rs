//! This machine as a worker: its name and its memory.

use std::fs;

use larder_model::{ByteSize, WorkerName};

/// The host's name, as a worker's name: lower case, without characters that names may not have.
pub(crate) fn worker_name() -> WorkerName {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    sanitised(&host)
}

fn sanitised(host: &str) -> WorkerName {
    let name: String = host
        .trim()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' })
        .take(63)
        .collect();
    WorkerName::new(name)
        .or_else(|_| WorkerName::new("local"))
        .expect("`local` follows the rules of worker names")
}

/// Memory of the machine, or of the control group that limits us (cgroup v2, `memory.max`).
pub(crate) fn total_memory() -> Option<ByteSize> {
    let machine = meminfo_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = group.and_then(|text| text.trim().parse().ok()).map(ByteSize);
    Some(limit.map_or(machine, |limit| limit.min(machine)))
}

fn meminfo_total(text: &str) -> Option<ByteSize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteSize(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_makes_a_worker_name() {
        for (host, name) in
            [("db-1.example.org\n", "db-1.example.org"), ("My_Host", "my-host"), ("", "local")]
        {
            assert_eq!(sanitised(host).as_str(), name);
        }
    }

    #[test]
    fn memory_is_read_in_kib() {
        let text = "MemTotal:        2048 kB\nMemFree: 1 kB\n";
        assert_eq!(meminfo_total(text), Some(ByteSize::mib(2)));
        assert!(total_memory().is_some());
    }
}
