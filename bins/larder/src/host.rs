//! Settings of this machine that servers of Redis ask for, looked at and reported; none is changed.

use std::fs;
use std::path::Path;

use larder_api::Advice;

/// Connections that a server listens for: Redis' own `tcp-backlog`, and Larder's default.
const BACKLOG: u64 = 511;
/// Clients of one server, Larder's connections to it, and its files.
const FILES: u64 = 10_240;

/// What should be otherwise, with the reason and the command. Empty: all is as it should be, or cannot be
/// read. `root` is `/`.
pub(crate) fn advice(root: &Path) -> Vec<Advice> {
    let read =
        |path: &str| fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
    let number = |path: &str| read(path).and_then(|text| text.parse::<u64>().ok());
    let mut all = Vec::new();
    let mut advise = |setting: &str, value: String, wanted: &str, why: &str, how: String| {
        all.push(Advice {
            setting: setting.to_owned(),
            value,
            wanted: wanted.to_owned(),
            why: why.to_owned(),
            how,
        });
    };
    if let Some(value) = number("proc/sys/vm/overcommit_memory").filter(|value| *value != 1) {
        let why = "a server forks to rewrite its append-only file and to feed a new replica: on a machine \
                   whose memory is more than half in use the kernel may refuse that";
        let how = "sysctl -w vm.overcommit_memory=1".to_owned();
        advise("vm.overcommit_memory", value.to_string(), "1", why, how);
    }
    let pages = "sys/kernel/mm/transparent_hugepage/enabled";
    if let Some(value) = read(pages).filter(|text| text.contains("[always]")) {
        let why = "after a fork every write copies 2 MiB instead of 4 KiB: latency and memory";
        let how = format!("echo madvise > /{pages}");
        let value = value.split(['[', ']']).nth(1).unwrap_or("always").to_owned();
        advise("transparent_hugepage", value, "madvise or never", why, how);
    }
    if let Some(value) = number("proc/sys/net/core/somaxconn").filter(|value| *value < BACKLOG) {
        let why = "clients that connect at the same moment wait, or are refused";
        let how = "sysctl -w net.core.somaxconn=1024".to_owned();
        advise("net.core.somaxconn", value.to_string(), "511 or more", why, how);
    }
    let limit = read("proc/self/limits").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("Max open files"))?.to_owned();
        // Name, soft limit, hard limit, unit.
        line.trim_start_matches("Max open files").split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    if let Some(value) = limit.filter(|value| *value < FILES) {
        let why = "a server takes fewer clients than it is configured for";
        let how = "raise `nofile` in limits.conf, or `LimitNOFILE` of the service".to_owned();
        advise("open files (hard limit)", value.to_string(), "10240 or more", why, how);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(overcommit: &str, pages: &str, somaxconn: &str, files: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/vm/overcommit_memory", overcommit.to_owned()),
            ("sys/kernel/mm/transparent_hugepage/enabled", pages.to_owned()),
            ("proc/sys/net/core/somaxconn", somaxconn.to_owned()),
            (
                "proc/self/limits",
                format!("Limit Soft Hard Units\nMax open files  64  {files}  files\n"),
            ),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        }
        root
    }

    #[test]
    fn a_machine_as_it_should_be_gets_no_advice() {
        let root = machine("1", "always [madvise] never", "4096", "1048576");
        assert_eq!(advice(root.path()), []);
        assert_eq!(advice(Path::new("/nowhere")), [], "what cannot be read is not wrong");
    }

    #[test]
    fn each_setting_is_named_with_what_it_is_and_what_to_do() {
        let root = machine("0", "[always] madvise never", "128", "1024");
        let all = advice(root.path());
        let found: Vec<_> = all.iter().map(|it| (it.setting.as_str(), it.value.as_str())).collect();
        let expected = [
            ("vm.overcommit_memory", "0"),
            ("transparent_hugepage", "always"),
            ("net.core.somaxconn", "128"),
            ("open files (hard limit)", "1024"),
        ];
        assert_eq!(found, expected);
        assert!(all.iter().all(|it| !it.how.is_empty() && !it.why.is_empty()));
    }
}
