//! MPI: which one an image has, which one the host has, how the launcher's ranks find each other, and what follows.
//!
//! ```text
//! variables     ─► launcher ─┐
//! image, program ────────────┼─► verdict: hybrid, bind, contained, singletons, other ABI
//! host's MPIs   ─► choice ───┘
//!                    └─► closure ─► bind: what of the host's MPI the container gets
//! ```
//!
//! All of it is decided from values; `host` looks at the host and `image` at the image. No program of an MPI is run.

pub mod bind;
pub mod choice;
pub mod launcher;
pub mod verdict;

use std::fmt;

use crate::host::facts::Companions;

/// What programs are linked with: MPIs of one family and number can stand in for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Abi {
    pub family: Family,
    /// Of the soname: 40 for Open MPI 3 to 5, 12 for MPICH 3.1 and later.
    pub number: u32,
}

/// Those who agree on an ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    OpenMpi,
    /// MPICH and those that follow it: Intel MPI, MVAPICH, Cray MPICH, ParaStation MPI.
    Mpich,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
        })
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.family, self.soname())
    }
}

impl Abi {
    /// Returns the soname that the MPI's own makers give it; Debian calls MPICH's `libmpich.so.12`.
    pub fn soname(&self) -> String {
        format!("libmpi.so.{}", self.number)
    }

    /// Tells the ABI by a soname. `open_mpi` says whether it belongs to an Open MPI: one number was used by both.
    pub fn of(soname: &[u8], open_mpi: bool) -> Option<Self> {
        let text = std::str::from_utf8(soname).ok()?;
        let (stem, number) = text.split_once(".so.")?;
        let number: u32 = number.parse().ok()?;
        let mpich_only = stem.starts_with("libmpich") || matches!(stem, "libmpifort" | "libmpicxx");
        if !mpich_only && !is_stem_of_mpi(stem) {
            return None;
        }
        let open_mpi = !mpich_only && (open_mpi || number >= 20);
        Some(Self { family: if open_mpi { Family::OpenMpi } else { Family::Mpich }, number })
    }
}

/// Whether a library is a part of an MPI that programs are linked with: its core, or what Fortran and C++ need.
pub fn is_mpi(soname: &[u8]) -> bool {
    Abi::of(soname, false).is_some()
}

/// `libmpi` and what it is called for Fortran and C++.
fn is_stem_of_mpi(stem: &str) -> bool {
    const OTHERS: [&str; 3] = ["libmpi_cxx", "libmpi_mpifh", "libmpi_usempi"];
    stem == "libmpi" || OTHERS.iter().any(|other| stem.starts_with(other))
}

/// Whether `name` is the library of Open MPI that its MPI library stands on.
pub fn is_part_of_open_mpi(name: &[u8]) -> bool {
    [&b"libopen-pal.so"[..], b"libopen-rte.so"].iter().any(|part| name.starts_with(part))
}

/// Whether a library of the same directory belongs to the MPI library `core` (`libmpi.so.40`, `libmpich.so.12`).
pub fn is_sibling(core: &[u8], name: &[u8]) -> bool {
    let number = |name: &[u8]| {
        let text = std::str::from_utf8(name).ok()?;
        text.split_once(".so.")?.1.parse::<u32>().ok()
    };
    let stem = |name: &[u8]| name.windows(4).position(|part| part == b".so.").map(|at| name[..at].to_vec());
    let (Some(of_core), Some(own), Some(stem)) = (number(core), number(name), stem(name)) else { return false };
    // Java comes with a machine of its own.
    if of_core != own || stem == b"libmpi_java" {
        return false;
    }
    let debian_mpich = core.starts_with(b"libmpich");
    let is_mpich = stem.starts_with(b"libmpich");
    if debian_mpich || is_mpich {
        return debian_mpich && is_mpich;
    }
    let others: [&[u8]; 4] = [b"libmpifort", b"libmpicxx", b"liboshmem", b"libmpi"];
    others.contains(&&stem[..]) || stem.starts_with(b"libmpi_")
}

/// Whether a library is made for the others of its MPI or of its fabric, so that it is exchanged with them or not at all.
pub fn is_of_the_stack(name: &[u8]) -> bool {
    const STEMS: [&str; 21] = [
        "libmpi",
        "libopen-",
        "libmca_",
        "libompi",
        "liboshmem",
        "libpmix",
        "libprrte",
        "libpmi",
        "libpals",
        "libucm",
        "libucp",
        "libucs",
        "libuct",
        "libfabric",
        "libibverbs",
        "librdmacm",
        "libmlx",
        "libefa",
        "libpsm",
        "libinfinipath",
        "libcxi",
    ];
    STEMS.iter().any(|stem| name.starts_with(stem.as_bytes()))
}

/// Other names under which an MPI of MPICH's ABI serves: Debian's have names of their own.
pub fn other_name(name: &[u8]) -> Option<Vec<u8>> {
    const PAIRS: [(&str, &str); 3] =
        [("libmpi", "libmpich"), ("libmpifort", "libmpichfort"), ("libmpicxx", "libmpichcxx")];
    let at = name.windows(4).position(|part| part == b".so.")?;
    let (stem, rest) = name.split_at(at);
    let other = PAIRS.iter().find_map(|(one, other)| match stem {
        stem if stem == one.as_bytes() => Some(other),
        stem if stem == other.as_bytes() => Some(one),
        _ => None,
    })?;
    Some([other.as_bytes(), rest].concat())
}

/// The sonames of MPI libraries that are looked for, the usual first.
pub const SONAMES: &[&str] = &["libmpi.so.40", "libmpi.so.12", "libmpich.so.12", "libmpi.so.20", "libmpi.so.80"];

/// Names of launchers on `PATH`, the usual first.
pub const LAUNCHERS: &[&str] =
    &["mpirun", "mpiexec", "prterun", "mpiexec.hydra", "mpirun.openmpi", "mpirun.mpich", "aprun"];

/// Names of the files that launchers are.
pub const LAUNCHER_PROGRAMS: &[&str] = &[
    "mpirun",
    "mpiexec",
    "orterun",
    "orted",
    "prterun",
    "prte",
    "prted",
    "mpiexec.hydra",
    "hydra_pmi_proxy",
    "hydra_bstrap_proxy",
    "mpirun.openmpi",
    "mpirun.mpich",
];

/// The family that a launcher belongs to, by the name of its file; `None` where the name is common to all.
pub fn family_of_launcher(program: &[u8]) -> Option<Family> {
    match program {
        b"orterun" | b"orted" | b"prterun" | b"prte" | b"prted" | b"mpirun.openmpi" => Some(Family::OpenMpi),
        b"mpiexec.hydra" | b"hydra_pmi_proxy" | b"hydra_bstrap_proxy" | b"mpirun.mpich" => Some(Family::Mpich),
        _ => None,
    }
}

/// Devices of fabrics and of copies between ranks, by what their names in `/dev` begin with.
pub const DEVICES: &[&str] = &["infiniband", "knem", "xpmem", "cxi", "hfi1", "ipath", "gdrdrv"];

/// Directories beside an Open MPI that hold its components.
pub const COMPONENT_DIRECTORIES: &[&str] = &["openmpi", "openmpi/lib/openmpi3", "openmpi/lib/openmpi"];

/// What MPIs and the libraries of fabrics load by name, and what they read.
pub const COMPANIONS: &[Companions] = &[
    Companions {
        of: "libopen-pal.so",
        plugins: COMPONENT_DIRECTORIES,
        files: &[
            "../share/openmpi",
            "../etc/openmpi-mca-params.conf",
            "../../share/openmpi",
            "/etc/openmpi",
            "/etc/openmpi-x86_64",
        ],
    },
    Companions {
        of: "libpmix.so",
        plugins: &["pmix", "pmix2/lib/pmix"],
        files: &["../share/pmix", "../etc/pmix-mca-params.conf", "../../share/pmix"],
    },
    Companions { of: "libprrte.so", plugins: &["prte"], files: &["../share/prte"] },
    Companions { of: "libucs.so", plugins: &["ucx"], files: &["../etc/ucx", "/etc/ucx"] },
    Companions { of: "libfabric.so", plugins: &["libfabric", "prov"], files: &[] },
    Companions { of: "libibverbs.so", plugins: &["libibverbs"], files: &["/etc/libibverbs.d"] },
    Companions { of: "libmpi.so.12", plugins: &[], files: &["../etc", "../../etc", "../opt/mpi", "../../opt/mpi"] },
];

/// The version in the text of an MPI library: `4.1.4`, a text of its own between zeros.
pub fn version(content: &[u8]) -> Option<String> {
    /// No version is longer.
    const MAX_BYTES: usize = 24;
    let texts = content.split(|&byte| byte == 0).filter(|text| (5..=MAX_BYTES).contains(&text.len()));
    texts.map(|text| text.strip_prefix(b"v").unwrap_or(text)).find(|text| is_version(text)).map(|text| {
        // Nothing but letters, digits and dots.
        String::from_utf8_lossy(text).into_owned()
    })
}

/// Three numbers with dots between them; the last may say that it is a candidate: `4.2.0rc1`.
fn is_version(text: &[u8]) -> bool {
    let words: Vec<&[u8]> = text.split(|&byte| byte == b'.').collect();
    let number = |word: &[u8]| (1..=2).contains(&word.len()) && word.iter().all(u8::is_ascii_digit);
    let [major, minor, patch] = words[..] else { return false };
    let digits = patch.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(patch.len());
    number(major) && number(minor) && number(&patch[..digits]) && patch.iter().all(u8::is_ascii_alphanumeric)
}

/// What a library calls itself, by its text and its place.
pub fn product(family: Family, path: &[u8], content: &[u8]) -> &'static str {
    let says = |text: &str| content.windows(text.len()).any(|part| part == text.as_bytes());
    let lies = |part: &str| path.to_ascii_lowercase().windows(part.len()).any(|found| found == part.as_bytes());
    match family {
        Family::OpenMpi => "Open MPI",
        Family::Mpich if lies("cray") => "Cray MPICH",
        Family::Mpich if lies("mvapich") || says("MVAPICH2 Version") || says("MVAPICH Version") => "MVAPICH",
        Family::Mpich if lies("intel") || says("Intel(R) MPI Library") => "Intel MPI",
        Family::Mpich => "MPICH",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soname_tells_the_abi() {
        let check = |soname: &str, open_mpi, expected: Option<(Family, u32)>| {
            let abi = Abi::of(soname.as_bytes(), open_mpi).map(|abi| (abi.family, abi.number));
            assert_eq!(abi, expected, "{soname}");
        };
        check("libmpi.so.40", false, Some((Family::OpenMpi, 40)));
        check("libmpi.so.12", false, Some((Family::Mpich, 12)));
        check("libmpi.so.12", true, Some((Family::OpenMpi, 12)));
        check("libmpich.so.12", false, Some((Family::Mpich, 12)));
        check("libmpi_usempif08.so.40", false, Some((Family::OpenMpi, 40)));
        check("libmpifort.so.12", false, Some((Family::Mpich, 12)));
        for other in ["libmpi.so", "libmpi.so.40.30", "libmpfr.so.6", "libmpiwrap.so.1", "libmpi_java.so.40"] {
            check(other, false, None);
        }
    }

    #[test]
    fn siblings_are_of_the_same_mpi() {
        for (core, name, expected) in [
            ("libmpi.so.40", "libmpi_mpifh.so.40", true),
            ("libmpi.so.40", "libmpi.so.40", true),
            ("libmpi.so.40", "libmpi_java.so.40", false),
            ("libmpi.so.40", "libmpich.so.12", false),
            ("libmpich.so.12", "libmpichfort.so.12", true),
            ("libmpich.so.12", "libmpi.so.12", false),
            ("libmpi.so.12", "libmpifort.so.12", true),
            ("libmpi.so.12", "libmpi.so.12.2.2", false),
            ("libmpi.so.40", "libz.so.40", false),
        ] {
            assert_eq!(is_sibling(core.as_bytes(), name.as_bytes()), expected, "{core} {name}");
        }
    }

    #[test]
    fn the_abi_of_mpich_has_two_names() {
        let other = |name: &str| other_name(name.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(other("libmpi.so.12").as_deref(), Some("libmpich.so.12"));
        assert_eq!(other("libmpichfort.so.12").as_deref(), Some("libmpifort.so.12"));
        assert_eq!(other("libmpi_mpifh.so.40"), None);
    }

    #[test]
    fn a_version_stands_in_the_text_of_a_library() {
        let text = b"\x7fELF\x00Open MPI v%d.%d.%d\x00v4.1.4\x00x\x00127.0.0.1\x00";
        assert_eq!(version(text).as_deref(), Some("4.1.4"));
        assert_eq!(version(b"\x00MPICH Version:\t%s\x00\x004.2.0rc1\x00").as_deref(), Some("4.2.0rc1"));
        assert_eq!(version(b"no version at all 4.2.0"), None);
        assert_eq!(product(Family::Mpich, b"/opt/cray/pe/mpich/lib", b""), "Cray MPICH");
        assert_eq!(product(Family::Mpich, b"/usr/lib", b"\0MVAPICH2 Version\0"), "MVAPICH");
    }
}
