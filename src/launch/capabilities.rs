//! The capabilities of Linux by name and number, as `capabilities(7)` and `linux/capability.h` have them.

/// Names without `CAP_`, in lower case; the index is the number.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// Returns the set that holds the capability called `name` alone, in any case and with or without `CAP_`; `None` when
/// no capability has that name.
pub fn bit(name: &[u8]) -> Option<u64> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix(b"cap_").unwrap_or(&name);
    let number = NAMES.iter().position(|known| known.as_bytes() == name)?;
    Some(1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_in_every_spelling() {
        for name in ["CAP_SYS_ADMIN", "sys_admin", "Cap_Sys_Admin", "SYS_ADMIN"] {
            assert_eq!(bit(name.as_bytes()), Some(1 << 21), "{name}");
        }
        assert_eq!(bit(b"chown"), Some(1));
        assert_eq!(bit(b"CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
    }

    #[test]
    fn what_is_no_capability_has_no_bit() {
        for name in ["", "cap_", "all", "cap_cap_chown", "CAP_UNKNOWN"] {
            assert_eq!(bit(name.as_bytes()), None, "{name}");
        }
    }
}
