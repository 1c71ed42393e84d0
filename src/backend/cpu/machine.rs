//! What this machine is, for people and for limits.

use super::isa::Isa;

/// E.g. "AMD EPYC 9654, 2 threads, AVX-512".
pub fn description(threads: usize) -> String {
    let set = match Isa::detect() {
        Isa::Portable => "portable vectors",
        Isa::Avx2 => "AVX2",
        Isa::Avx512 => "AVX-512",
    };
    let plural = if threads == 1 { "" } else { "s" };
    format!("{}, {threads} thread{plural}, {set}", model())
}

fn model() -> String {
    let listed = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = listed
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map(|(_, value)| value.trim().to_string());
    name.unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH))
}

/// Memory that can still be taken: what the kernel calls available, within the
/// control group's limit. 0 where the system does not say.
pub fn available_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_in(&meminfo) else { return 0 };
    let group = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    match (group("memory.max"), group("memory.current")) {
        (Some(limit), Some(used)) => available.min(limit.saturating_sub(used)),
        _ => available,
    }
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    4096 kB\n";
        assert_eq!(available_in(text), Some(4 << 20));
        assert_eq!(available_in("MemTotal: 1 kB"), None);
    }

    #[test]
    fn the_description_names_threads_and_instructions() {
        assert!(description(1).contains(", 1 thread, "));
        assert!(description(2).contains(", 2 threads, "));
    }
}
