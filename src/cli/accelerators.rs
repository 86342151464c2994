//! `--nv`, `--rocm`, `--gpus`, `--device`: from the request to what the container gets; and `gpu explain`, which tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use starter::paths::{ContainerPath, HostPath};

use crate::conf::{self, SiteConfig};
use crate::elf::{self, Object};
use crate::env_names;
use crate::gpu::cdi::{self, Found, spec};
use crate::gpu::libraries::Verdict;
use crate::gpu::list::{self, Wanted};
use crate::gpu::selection::{Variables, Wish};
use crate::gpu::{self, BindKind, GpuBinds, GpuRequest, ImageFacts, Lists, Notice};
use crate::host::accelerators::{self as observed, AcceleratorQuery};
use crate::host::facts::Vendor;
use crate::image;
use crate::image::facts::{CLibrary, ImageLibraries};
use crate::launch::request::LaunchRequest;
use crate::report::{self, Failure, cause, failure};
use crate::tree::lookup::{self, Lookup};

/// The linker's cache of an image is not larger.
const MAX_CACHE_BYTES: u64 = 16 << 20;

/// Decides what the container gets, and says what is worth saying.
pub fn prepare(request: &LaunchRequest, site: &SiteConfig, image: Option<&dyn Lookup>) -> Result<GpuBinds, Failure> {
    let binds = decide(request, site, image)?;
    for notice in &binds.notices {
        let by_the_site = match notice {
            Notice::NothingFound(Vendor::Nvidia) => !asks_for_nvidia(request),
            Notice::NothingFound(Vendor::Amd) => !request.rocm,
            _ => false,
        };
        if notice.is_warning() && !by_the_site { report::warning(notice) } else { report::verbose(notice) }
    }
    Ok(binds)
}

/// `--gpus` alone means NVIDIA's.
fn asks_for_nvidia(request: &LaunchRequest) -> bool {
    request.nv || request.nvccli || (request.gpus.is_some() && !request.rocm)
}

fn decide(request: &LaunchRequest, site: &SiteConfig, image: Option<&dyn Lookup>) -> Result<GpuBinds, Failure> {
    let nvidia = (asks_for_nvidia(request) || site.always_use_nv) && !request.no_nv;
    let amd = (request.rocm || site.always_use_rocm) && !request.no_rocm;
    if request.nvccli && nvidia {
        report::info("--nvccli is not needed: what it does --nv does without NVIDIA's program");
    }
    if request.compat32 && !nvidia && !amd {
        report::warning("--compat32 brings nothing without --nv or --rocm");
    }
    let mut binds = GpuBinds::default();
    if nvidia || amd {
        binds = decide_gpus(request, nvidia, amd, image)?;
    }
    if !request.devices.is_empty() {
        let devices = decide_devices(request, image)?;
        binds.binds.extend(devices.binds);
        binds.environment.extend(devices.environment);
        binds.files.extend(devices.files);
        binds.links.extend(devices.links);
        binds.modes.extend(devices.modes);
        binds.notices.extend(devices.notices);
        // A device that was asked for by name is not hidden.
        let shown: BTreeSet<ContainerPath> = binds.binds.iter().map(|bind| bind.target.clone()).collect();
        binds.hidden.retain(|hidden| !shown.contains(&hidden.path));
    }
    Ok(binds)
}

fn decide_gpus(
    request: &LaunchRequest,
    nvidia: bool,
    amd: bool,
    image: Option<&dyn Lookup>,
) -> Result<GpuBinds, Failure> {
    let gpus = match &request.gpus {
        None => None,
        Some(text) => Some(Wish::parse(text).ok_or_else(|| {
            Failure::usage(format!("cannot use `{}` for `--gpus`", String::from_utf8_lossy(text)))
                .hint("It takes numbers, NUMBER:INSTANCE, identifiers that begin with GPU- or MIG-, all, or none.")
        })?),
    };
    let mut lists = Lists::default();
    if nvidia {
        lists.nvidia = read_list(request, "nvliblist.conf", list::NVIDIA)?;
        // The variable may say anything; a directory with this pipe is what it means.
        let pipes = std::env::var_os(env_names::CUDA_MPS_PIPE_DIRECTORY);
        let pipes = pipes.filter(|directory| Path::new(directory).join("control").exists());
        let pipes = pipes.and_then(|directory| ContainerPath::parse(directory.as_bytes()).ok());
        lists.nvidia.extend(pipes.map(|path| Wanted::Path { path, writable: true }));
    }
    if amd {
        lists.amd = read_list(request, "rocmliblist.conf", list::AMD)?;
    }
    let host = observed::observe(Path::new("/"), &query(&lists, nvidia, amd));
    let libraries = |machine| match image {
        // Without libraries of the host nothing depends on those of the image.
        Some(root) if !host.libraries.is_empty() => {
            image::libraries::observe(root, machine).map_err(|error| Failure::new(error.to_string()))
        }
        _ => Ok(ImageLibraries { c_library: CLibrary::Unknown, names: BTreeSet::new() }),
    };
    let narrow = elf::compatible_machine(host.machine).filter(|_| request.compat32).map(libraries).transpose()?;
    let image = ImageFacts { libraries: libraries(host.machine)?, narrow };
    let request = GpuRequest { nvidia, amd, gpus, variables: variables() };
    gpu::plan(&request, &lists, &host, &image).map_err(|error| failure(&error))
}

fn read_list(request: &LaunchRequest, name: &str, shipped: &str) -> Result<Vec<Wanted>, Failure> {
    let given = request.config_file.as_deref().map(Path::new);
    match conf::load::read_beside(given, name).map_err(|error| failure(&error))? {
        Some((path, text)) => {
            list::parse(&text).map_err(|error| Failure::new(format!("cannot use the list {}: {error}", path.display())))
        }
        None => list::parse(shipped.as_bytes()).map_err(|error| Failure::new(format!("cannot use {name}: {error}"))),
    }
}

fn query(lists: &Lists, nvidia: bool, amd: bool) -> AcceleratorQuery {
    let variable = |name| std::env::var_os(name).map(OsStringExt::into_vec).unwrap_or_default();
    let mut query = AcceleratorQuery {
        nvidia,
        amd,
        search_path: variable("PATH"),
        library_path: variable("LD_LIBRARY_PATH"),
        drivers: [&lists.nvidia, &lists.amd]
            .into_iter()
            .filter_map(|list| list::driver(list))
            .map(<[u8]>::to_vec)
            .collect(),
        ..AcceleratorQuery::default()
    };
    for wanted in lists.nvidia.iter().chain(&lists.amd) {
        match wanted {
            Wanted::Program(name) => query.programs.push(name.clone()),
            Wanted::Library { name, .. } => query.libraries.push(name.clone()),
            Wanted::Path { path, .. } => query.paths.push(HostPath::from_bytes(path.as_bytes())),
        }
    }
    query
}

fn variables() -> Variables {
    let read = |name| std::env::var_os(name).map(OsStringExt::into_vec);
    let several = |name| std::env::var(name).ok().and_then(|count| count.parse::<u32>().ok()).is_some_and(|n| n > 1);
    Variables {
        nvidia_visible_devices: read(env_names::NVIDIA_VISIBLE_DEVICES),
        cuda_visible_devices: read(env_names::CUDA_VISIBLE_DEVICES),
        cuda_device_order: read(env_names::CUDA_DEVICE_ORDER),
        rocr_visible_devices: read(env_names::ROCR_VISIBLE_DEVICES),
        hip_visible_devices: read(env_names::HIP_VISIBLE_DEVICES),
        one_of_several_ranks: env_names::RANK_COUNTS.into_iter().any(several),
    }
}

// ---- devices by name ----

fn decide_devices(request: &LaunchRequest, image: Option<&dyn Lookup>) -> Result<GpuBinds, Failure> {
    let found = descriptions(request)?;
    let groups: Vec<u32> = nix::unistd::getgroups().unwrap_or_default().iter().map(|group| group.as_raw()).collect();
    let edits = cdi::edits(&request.devices, &found, &groups).map_err(|error| failure(&error))?;
    let object = |path: HostPath| {
        let file = File::open(&path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
        Some((path, Object::parse(&file).ok()?))
    };
    let objects: BTreeMap<HostPath, Object> = edits.libraries().into_iter().filter_map(object).collect();
    let names = match (image, edits.host_driver) {
        (Some(root), Some(_)) => lookup::list(root, &ContainerPath::fixed(cdi::CUDA_COMPAT)).ok().flatten(),
        _ => None,
    };
    let names: Vec<Vec<u8>> = names.unwrap_or_default().into_iter().map(|entry| entry.name).collect();
    let compat = edits.host_driver.map(|host| cdi::newer_than_the_host(&names, host)).unwrap_or_default();
    let cache = match image {
        Some(root) if !objects.is_empty() || !compat.is_empty() => {
            lookup::read(root, &ContainerPath::fixed("/etc/ld.so.cache"), MAX_CACHE_BYTES).ok().flatten()
        }
        _ => None,
    };
    Ok(edits.finish(&objects, &compat, &cache.unwrap_or_default()))
}

/// Reads every description. One that can't be used is worth a warning: the device may be in another one.
fn descriptions(request: &LaunchRequest) -> Result<Vec<Found>, Failure> {
    let usual = cdi::DIRECTORIES.map(OsStr::new);
    let given: Vec<&OsStr> = request.cdi_dirs.iter().map(|directory| directory.as_os_str()).collect();
    let directories = if given.is_empty() { &usual[..] } else { &given[..] };
    let mut found = Vec::new();
    for (number, directory) in directories.iter().enumerate() {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if given.is_empty() && error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                let shown = Path::new(directory).display();
                return Err(Failure::new(format!("cannot look for devices in {shown}: {}", cause(&error))));
            }
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default();
            let Some(language) = spec::Language::of_file(name.as_bytes()) else { continue };
            let read = read_description(&path);
            match read.and_then(|text| spec::parse(&text, language).map_err(|why| why.to_string())) {
                Ok(spec) => found.push(Found { path: HostPath::new(path), directory: number, spec }),
                Err(why) => report::warning(format_args!("{} describes no devices: {why}", path.display())),
            }
        }
    }
    Ok(found)
}

fn read_description(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    // One byte more than may be, so that the parser sees that it is too much.
    let limit = spec::MAX_SPEC_BYTES as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
    read.map(|_| text).map_err(|error| cause(&error))
}

// ---- gpu explain ----

/// Prints what a container would get, and why.
pub fn explain(request: &LaunchRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let given = request.config_file.as_deref().map(Path::new);
    let site = conf::load::load(given).map_err(|error| failure(&error))?;
    let image = match request.image.is_empty() {
        true => None,
        false => Some(image::open(&request.image).map_err(|error| failure(&error))?),
    };
    let nothing_said = !asks_for_nvidia(request) && !request.rocm && request.devices.is_empty();
    let request =
        &LaunchRequest { nv: request.nv || nothing_said, rocm: request.rocm || nothing_said, ..request.clone() };
    let binds = decide(request, &site, image.as_ref().map(|image| image.root()))?;
    let mut page = String::new();
    let mut line = |text: String| page.push_str(&format!("{}\n", report::printable(&text)));
    for bind in &binds.binds {
        let from = if bind.source.as_bytes() == bind.target.as_bytes() {
            String::new()
        } else {
            format!(" <- {}", bind.source)
        };
        line(format!("{:<9} {}{from}  ({})", bind.kind.to_string(), bind.target, bind.reason));
    }
    for (path, target) in &binds.links {
        line(format!("{:<9} {path} -> {}", "link", String::from_utf8_lossy(target)));
    }
    for (path, _) in &binds.files {
        line(format!("{:<9} {path}  (written anew for the libraries of devices)", "file"));
    }
    for hidden in &binds.hidden {
        line(format!("{:<9} {}  ({})", "hidden", hidden.path, hidden.reason));
    }
    for (node, why) in &binds.refused {
        let errno = node.refused.map(std::io::Error::from_raw_os_error);
        let refusal = errno.map(|error| cause(&error)).unwrap_or_default();
        line(format!("{:<9} {}  ({why}: {refusal})", "refused", node.path));
    }
    for library in &binds.left_out {
        let Verdict::LeftOut(why) = &library.verdict else { continue };
        line(format!("{:<9} {} at {}  ({why})", "left out", String::from_utf8_lossy(&library.name), library.path));
    }
    for (name, value) in binds.recounted.iter().chain(&binds.environment) {
        line(format!("{:<9} {}={}", "variable", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    }
    for notice in &binds.notices {
        line(format!("{:<9} {notice}", "note"));
    }
    if image.is_none() && binds.binds.iter().any(|bind| bind.kind == BindKind::Library) {
        line("An image may have some of its own, or be too old for others: name one to see.".to_owned());
    }
    out.write_all(page.as_bytes()).map_err(|error| Failure::new(format!("cannot write to standard output: {error}")))
}
