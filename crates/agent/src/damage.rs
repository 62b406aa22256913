//! What a server could not load of its own files, by the words that it ended with.
//!
//! Only known words count. Another reason not to start (a port in use, no room, no memory) says
//! nothing of the data, and data are given up for a copy only when they are surely unreadable.

/// The file that keeps a server from starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The append-only file, its manifest, or the snapshot that it begins with.
    Data,
    /// `nodes.conf`.
    ClusterFile,
}

/// Lower-case parts of what Redis 6.2 to 7.0 and Valkey 8.0 to 9.1 write before they exit (aof.c,
/// rdb.c, server.c).
const DATA: [&str; 10] = [
    "error reading the append only file",
    "end of file reading the append only file",
    "bad file format reading the append only file",
    "reading the rdb preamble of the",
    "error reading the rdb base file",
    "fatal aof manifest file error",
    "terminating server after rdb file reading failure",
    "wrong signature trying to load db from file",
    "wrong rdb checksum",
    "fatal error loading the db",
];

/// `Unknown command 'X' reading the append only file`: garbage, or an older engine than the one
/// that wrote the file.
const UNKNOWN_COMMAND: [&str; 2] = ["unknown command '", "' reading the append only file"];

/// `clusterLoadConfig` (cluster.c).
const CLUSTER_FILE: &str = "corrupted cluster config file";

/// With these the file may be as good as it ever was.
const NOT_THE_FILE: [&str; 8] = [
    "no space left",
    "out of memory",
    "cannot allocate memory",
    "input/output error",
    "stale file handle",
    "timed out",
    "too many open files",
    "permission denied",
];

/// Judges by what the server wrote in its life.
pub(crate) fn judge(log: &str) -> Option<Damage> {
    let log = log.to_lowercase();
    if NOT_THE_FILE.iter().any(|words| log.contains(words)) {
        return None;
    }
    if log.contains(CLUSTER_FILE) {
        return Some(Damage::ClusterFile);
    }
    let unknown = UNKNOWN_COMMAND.iter().all(|words| log.contains(words));
    (unknown || DATA.iter().any(|words| log.contains(words))).then_some(Damage::Data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_files_are_told_from_other_reasons_not_to_start() {
        let bad = "Bad file format reading the append only file appendonly.aof.1.incr.aof: make a \
                   backup of your AOF file, then use ./redis-check-aof --fix <filename.manifest>";
        assert_eq!(judge(bad), Some(Damage::Data));
        let unknown = "Unknown command '\u{fffd}' reading the append only file appendonly.aof";
        assert_eq!(judge(unknown), Some(Damage::Data));
        let cluster = "Unrecoverable error: corrupted cluster config file \"x=1\".";
        assert_eq!(judge(cluster), Some(Damage::ClusterFile));
        for other in [
            "",
            "* Reading RDB base file on AOF loading...",
            "* Reading RDB preamble from AOF file...",
            "Could not create server TCP listening socket 127.0.0.1:1: bind: Address in use",
            "Unrecoverable error reading the append only file x: Cannot allocate memory",
            "Unrecoverable error reading the append only file x: Input/output error",
            "Unrecoverable error reading the append only file x: Stale file handle",
        ] {
            assert_eq!(judge(other), None, "{other}");
        }
    }
}
