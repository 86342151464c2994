//! What is known of a host's accelerators and of the driver files that programs need for them.

use std::collections::BTreeMap;

use starter::paths::HostPath;

use super::PathKind;
use crate::elf::Object;

/// Who made an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vendor {
    Nvidia,
    Amd,
}

/// A snapshot of what a request for accelerators is decided from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuHostFacts {
    /// `e_machine` of the host's programs.
    pub machine: u16,
    /// Those libraries of the linker's cache whose names were asked for, in the cache's order.
    pub libraries: Vec<HostLibrary>,
    /// Where on `PATH` the programs are that were asked for.
    pub programs: BTreeMap<Vec<u8>, HostPath>,
    /// What is there of each absolute path asked for: one, or several where its last name holds `*`.
    pub files: BTreeMap<HostPath, Vec<(HostPath, PathKind)>>,
    /// In the order that their vendor's tools count them: by PCI address for NVIDIA, by topology node for AMD.
    pub gpus: Vec<Gpu>,
    /// Device nodes that belong to the driver as a whole, such as `/dev/nvidiactl` and `/dev/kfd`.
    pub control: Vec<(Vendor, Node)>,
}

/// A library of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLibrary {
    /// The name that programs ask for.
    pub name: Vec<u8>,
    /// The file, without symbolic links where it is there.
    pub path: HostPath,
    /// What the file says of itself, or why it can't be used.
    pub object: Result<Object, String>,
}

/// One accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub vendor: Vendor,
    /// The vendor's name for this very piece: `GPU-` and a UUID or a number.
    pub id: Vec<u8>,
    pub model: Vec<u8>,
    /// The nodes that are this accelerator's alone.
    pub nodes: Vec<Node>,
    /// Parts of it that were made by NVIDIA's MIG, in the order that they are counted.
    pub instances: Vec<MigInstance>,
}

impl Gpu {
    /// Whether the caller may use it: permission bits and the device rules of its control group allow it.
    pub fn accessible(&self) -> bool {
        self.nodes.first().is_some_and(|node| node.refused.is_none())
    }
}

/// A compute instance of a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigInstance {
    pub gpu_instance: u32,
    pub compute_instance: u32,
    /// The capability devices that open the way to it.
    pub nodes: Vec<Node>,
}

impl MigInstance {
    /// Whether the caller may use it.
    pub fn accessible(&self) -> bool {
        self.nodes.iter().all(|node| node.refused.is_none())
    }
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    pub path: HostPath,
    /// The error of the system with which the caller is refused what programs do with it.
    pub refused: Option<i32>,
}
