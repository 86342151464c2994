//! Hosts as one meets them, and what containers get of their accelerators.

use super::*;
use crate::elf::fabricate::Library;
use crate::elf::{Class, GlibcVersion, Object};
use crate::host::facts::{HostLibrary, MigInstance};
use crate::image::facts::CLibrary;
use std::collections::BTreeMap;

fn node(path: &str) -> Node {
    Node { path: HostPath::new(path), refused: None }
}

fn nvidia(number: usize) -> Gpu {
    Gpu {
        vendor: Vendor::Nvidia,
        id: format!("GPU-{number}").into_bytes(),
        model: b"H200".to_vec(),
        nodes: vec![node(&format!("/dev/nvidia{number}")), node(&format!("/dev/dri/renderD{}", 128 + number))],
        instances: Vec::new(),
    }
}

fn library(name: &str, fabricated: &Library<'_>) -> HostLibrary {
    let object = Object::parse(&fabricated.to_bytes()[..]).map_err(|error| error.to_string());
    HostLibrary { name: name.into(), path: HostPath::new(format!("/usr/lib/{name}.570")), object }
}

/// A host with two GPUs and a driver whose `libGL` wants a newer C library.
fn workstation() -> GpuHostFacts {
    GpuHostFacts {
        machine: 62,
        libraries: vec![
            library("libcuda.so.1", &Library { glibc_needs: &["GLIBC_2.14"], ..Library::default() }),
            library("libGL.so.1", &Library { glibc_needs: &["GLIBC_9.99"], ..Library::default() }),
            library("libnvidia-ml.so.1", &Library { glibc_needs: &["GLIBC_9.99"], ..Library::default() }),
        ],
        programs: BTreeMap::from([(b"nvidia-smi".to_vec(), HostPath::new("/opt/bin/nvidia-smi"))]),
        files: [
            ("/run/nvidia-persistenced/socket", "/run/nvidia-persistenced/socket", PathKind::Other),
            ("/tmp/nvidia-mps", "/tmp/nvidia-mps", PathKind::Directory),
            ("/etc/vulkan/icd.d/nvidia_icd*.json", "/etc/vulkan/icd.d/nvidia_icd.x86_64.json", PathKind::File),
        ]
        .map(|(asked, found, kind)| (HostPath::new(asked), vec![(HostPath::new(found), kind)]))
        .into(),
        gpus: vec![nvidia(0), nvidia(1)],
        control: vec![(Vendor::Nvidia, node("/dev/nvidiactl")), (Vendor::Nvidia, node("/dev/nvidia-uvm"))],
    }
}

fn lists() -> Lists {
    let list = |text: &str| list::parse(text.as_bytes()).expect("a list");
    Lists { nvidia: list(list::NVIDIA), amd: list(list::AMD) }
}

fn image() -> ImageFacts {
    let version = GlibcVersion::from_symbol_version(b"GLIBC_2.31").expect("a version");
    ImageFacts { libraries: ImageLibraries { c_library: CLibrary::Glibc(version), names: [].into() }, narrow: None }
}

fn nv() -> GpuRequest {
    GpuRequest { nvidia: true, ..GpuRequest::default() }
}

fn planned(request: &GpuRequest, host: &GpuHostFacts) -> GpuBinds {
    plan(request, &lists(), host, &image()).expect("a plan")
}

/// Checks the binds as `kind source target`, and the hidden nodes.
#[track_caller]
fn check(request: &GpuRequest, host: &GpuHostFacts, binds: &[&str], hidden: &[&str]) -> GpuBinds {
    let planned = planned(request, host);
    let said: Vec<String> =
        planned.binds.iter().map(|bind| format!("{} {} {}", bind.kind, bind.source, bind.target)).collect();
    assert_eq!(said, binds);
    let said: Vec<String> = planned.hidden.iter().map(|hidden| hidden.path.to_string()).collect();
    assert_eq!(said, hidden);
    planned
}

const FILES: [&str; 5] = [
    "library /usr/lib/libcuda.so.1.570 /.singularity.d/libs/libcuda.so.1",
    "program /opt/bin/nvidia-smi /usr/bin/nvidia-smi",
    "socket /run/nvidia-persistenced/socket /run/nvidia-persistenced/socket",
    "writable file /tmp/nvidia-mps /tmp/nvidia-mps",
    "file /etc/vulkan/icd.d/nvidia_icd.x86_64.json /etc/vulkan/icd.d/nvidia_icd.x86_64.json",
];

#[test]
fn a_container_gets_what_it_can_use() {
    let mut expected = FILES.to_vec();
    expected.extend([
        "device /dev/nvidiactl /dev/nvidiactl",
        "device /dev/nvidia-uvm /dev/nvidia-uvm",
        "device /dev/nvidia0 /dev/nvidia0",
        "device /dev/dri/renderD128 /dev/dri/renderD128",
        "device /dev/nvidia1 /dev/nvidia1",
        "device /dev/dri/renderD129 /dev/dri/renderD129",
    ]);
    let planned = check(&nv(), &workstation(), &expected, &[]);
    let said: Vec<String> = planned.notices.iter().map(ToString::to_string).collect();
    let expected = "1 library of the host can't work in this image and is left out: libnvidia-ml.so.1 (needs glibc \
                    9.99, the image has 2.31)";
    assert_eq!(said, [expected]);
    assert!(planned.notices[0].is_warning());
}

#[test]
fn what_an_image_can_do_without_is_no_warning() {
    let mut host = workstation();
    host.libraries.pop();
    let [notice] = &planned(&nv(), &host).notices[..] else { panic!("one notice") };
    assert!(notice.to_string().contains("libGL.so.1") && !notice.is_warning());
}

#[test]
fn what_is_not_chosen_is_hidden() {
    let request = GpuRequest { gpus: Wish::parse(b"1"), ..nv() };
    let mut expected = FILES.to_vec();
    expected.extend([
        "device /dev/nvidiactl /dev/nvidiactl",
        "device /dev/nvidia-uvm /dev/nvidia-uvm",
        "device /dev/nvidia1 /dev/nvidia1",
        "device /dev/dri/renderD129 /dev/dri/renderD129",
    ]);
    check(&request, &workstation(), &expected, &["/dev/nvidia0", "/dev/dri/renderD128"]);
}

#[test]
fn what_the_device_rules_of_a_job_refuse_is_neither_shown_nor_hidden() {
    let mut host = workstation();
    for node in &mut host.gpus[0].nodes {
        node.refused = Some(1);
    }
    let planned = planned(&nv(), &host);
    assert!(planned.hidden.is_empty());
    assert!(planned.binds.iter().all(|bind| bind.source != HostPath::new("/dev/nvidia0")));
    assert!(planned.binds.iter().any(|bind| bind.source == HostPath::new("/dev/nvidia1")));
}

#[test]
fn what_no_permission_bit_allows_is_said() {
    const EACCES: i32 = 13;
    let mut host = workstation();
    for node in host.gpus.iter_mut().flat_map(|gpu| &mut gpu.nodes) {
        node.refused = Some(EACCES);
    }
    let denied = planned(&nv(), &host);
    let said: Vec<String> = denied.notices.iter().map(ToString::to_string).collect();
    assert_eq!(said[1], "you may use none of this host's 2 GPUs: /dev/nvidia0: permission denied");
    let refused: Vec<String> = denied.refused.iter().map(|(node, what)| format!("{} {what}", node.path)).collect();
    assert_eq!(refused[..2], ["/dev/nvidia0 GPU-0", "/dev/dri/renderD128 GPU-0"]);
    // A job without GPUs has nothing to be warned of.
    host.gpus[1].nodes[0].refused = Some(1);
    assert_eq!(planned(&nv(), &host).notices.len(), 1);
}

#[test]
fn instances_share_the_capability_of_the_one_they_are_in() {
    let mut host = workstation();
    let instance = |compute_instance, caps: &[u32]| MigInstance {
        gpu_instance: 1,
        compute_instance,
        nodes: caps.iter().map(|cap| node(&format!("/dev/nvidia-caps/nvidia-cap{cap}"))).collect(),
    };
    host.gpus[0].instances = vec![instance(0, &[3, 4]), instance(1, &[3, 5])];
    let request = GpuRequest { gpus: Wish::parse(b"0:1"), ..nv() };
    let planned = planned(&request, &host);
    let shown = |path: &str| planned.binds.iter().any(|bind| bind.source == HostPath::new(path));
    assert!(shown("/dev/nvidia0") && shown("/dev/nvidia-caps/nvidia-cap3") && shown("/dev/nvidia-caps/nvidia-cap5"));
    let hidden: Vec<String> = planned.hidden.iter().map(|hidden| hidden.path.to_string()).collect();
    assert_eq!(hidden, ["/dev/nvidia-caps/nvidia-cap4", "/dev/nvidia1", "/dev/dri/renderD129"]);
}

#[test]
fn a_host_without_the_driver_is_worth_a_warning_and_no_failure() {
    let request = GpuRequest { amd: true, gpus: Wish::parse(b"0"), ..nv() };
    let planned = check(&request, &GpuHostFacts::default(), &[], &[]);
    assert_eq!(
        planned.notices,
        [Notice::NothingFound(Vendor::Nvidia), Notice::NothingFound(Vendor::Amd), Notice::NoGpu]
    );
}

#[test]
fn libraries_that_other_programs_use_too_come_with_the_driver_only() {
    let request = GpuRequest { amd: true, ..nv() };
    let glvnd = library("libEGL.so.1", &Library::default());
    let host = GpuHostFacts { machine: 62, libraries: vec![glvnd.clone()], ..GpuHostFacts::default() };
    let planned = check(&request, &host, &[], &[]);
    assert_eq!(planned.notices, [Notice::NothingFound(Vendor::Nvidia), Notice::NothingFound(Vendor::Amd)]);
    let driver = library("libcuda.so.1", &Library::default());
    let host = GpuHostFacts { libraries: vec![glvnd, driver], ..host };
    let expected = [
        "library /usr/lib/libcuda.so.1.570 /.singularity.d/libs/libcuda.so.1",
        "library /usr/lib/libEGL.so.1.570 /.singularity.d/libs/libEGL.so.1",
    ];
    check(&nv(), &host, &expected, &[]);
}

#[test]
fn libraries_of_32_bits_are_judged_by_the_images_own_of_32_bits() {
    let narrow = |name: &str, glibc_needs: &[&str]| {
        library(name, &Library { class: Class::Bits32, machine: 3, glibc_needs, ..Library::default() })
    };
    let mut host = GpuHostFacts { machine: 62, ..GpuHostFacts::default() };
    host.libraries = vec![
        library("libcuda.so.1", &Library::default()),
        narrow("libcuda.so.1", &["GLIBC_2.4"]),
        narrow("libnvidia-ml.so.1", &["GLIBC_2.30"]),
        narrow("libGL.so.1", &["GLIBC_2.4"]),
    ];
    let wide = "library /usr/lib/libcuda.so.1.570 /.singularity.d/libs/libcuda.so.1";
    assert_eq!(check(&nv(), &host, &[wide], &[]).left_out.len(), 3);
    let version = GlibcVersion::from_symbol_version(b"GLIBC_2.17").expect("a version");
    let narrow = ImageLibraries { c_library: CLibrary::Glibc(version), names: [b"libGL.so.1".to_vec()].into() };
    let image = ImageFacts { narrow: Some(narrow), ..image() };
    let planned = plan(&nv(), &lists(), &host, &image).expect("a plan");
    let said: Vec<String> = planned.binds.iter().map(|bind| bind.target.to_string()).collect();
    assert_eq!(said, ["/.singularity.d/libs/libcuda.so.1", "/.singularity.d/libs32/libcuda.so.1"]);
    let said: Vec<String> = planned.left_out.iter().map(|left| format!("{:?}", left.verdict)).collect();
    assert!(said[0].contains("NeedsGlibc") && said[1].contains("ImageHasOne"), "{said:?}");
}

#[test]
fn both_vendors_can_be_asked_for_and_numbers_count_the_first_that_is_there() {
    let mut host = GpuHostFacts { machine: 62, ..GpuHostFacts::default() };
    host.control = vec![(Vendor::Amd, node("/dev/kfd"))];
    for number in [128, 129] {
        host.gpus.push(Gpu {
            vendor: Vendor::Amd,
            id: b"GPU-1".to_vec(),
            model: Vec::new(),
            nodes: vec![node(&format!("/dev/dri/renderD{number}"))],
            instances: Vec::new(),
        });
    }
    let variables = Variables { rocr_visible_devices: Some(b"1".to_vec()), ..Variables::default() };
    let request = GpuRequest { nvidia: true, amd: true, gpus: None, variables };
    let binds = ["device /dev/kfd /dev/kfd", "device /dev/dri/renderD129 /dev/dri/renderD129"];
    let planned = check(&request, &host, &binds, &["/dev/dri/renderD128"]);
    assert_eq!(planned.recounted, [(b"ROCR_VISIBLE_DEVICES".to_vec(), b"0".to_vec())]);
    assert_eq!(planned.notices, [Notice::NothingFound(Vendor::Nvidia)]);
    let request = GpuRequest { gpus: Wish::parse(b"0"), ..request };
    let binds = ["device /dev/kfd /dev/kfd", "device /dev/dri/renderD128 /dev/dri/renderD128"];
    check(&request, &host, &binds, &["/dev/dri/renderD129"]);
}

#[test]
fn a_number_that_is_not_there_is_said_with_those_that_are() {
    let request = GpuRequest { gpus: Wish::parse(b"2"), ..nv() };
    let error = plan(&request, &lists(), &workstation(), &image()).unwrap_err();
    assert_eq!(error.to_string(), "cannot use the GPU `2`: there are 2, with the numbers 0 to 1");
}

#[test]
fn nothing_is_brought_that_was_not_asked_for() {
    check(&GpuRequest::default(), &workstation(), &[], &[]);
}
