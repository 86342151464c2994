//! Which accelerators of a host a container gets.
//!
//! ```text
//! --gpus  >  NVIDIA_VISIBLE_DEVICES  >  CUDA_VISIBLE_DEVICES  >  all            NVIDIA
//! --gpus  >  ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES of those  >  all         AMD
//! ```
//!
//! Numbers count what the caller may use, as the vendors' tools do: below the device rules of a batch job, 0 is the
//! first accelerator of the job. When some are hidden the rest is counted anew, so variables that hold numbers are
//! written anew as well.

use std::fmt;

use crate::host::facts::{Gpu, Vendor};

/// The variables of the caller that say which accelerators to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    pub nvidia_visible_devices: Option<Vec<u8>>,
    pub cuda_visible_devices: Option<Vec<u8>>,
    pub cuda_device_order: Option<Vec<u8>>,
    pub rocr_visible_devices: Option<Vec<u8>>,
    /// Its numbers count what `ROCR_VISIBLE_DEVICES` leaves, in that order.
    pub hip_visible_devices: Option<Vec<u8>>,
    /// Whether the process is one of several ranks of a parallel program on this host.
    pub one_of_several_ranks: bool,
}

/// What `--gpus` or a variable says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    All,
    None,
    These(Vec<Pick>),
}

/// One accelerator, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    Number(usize),
    /// `2:0`: the first MIG instance of number 2.
    Instance {
        number: usize,
        instance: usize,
    },
    /// `GPU-..` or `MIG-..`, perhaps shortened.
    Id(Vec<u8>),
}

impl Wish {
    /// Reads `all`, `none`, or a list such as `0,2:1,GPU-4f5e`, perhaps after Docker's `device=`; `None` when it is no
    /// such thing.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let text = text.strip_prefix(b"device=").unwrap_or(text);
        match text {
            b"all" => return Some(Self::All),
            b"none" => return Some(Self::None),
            b"" => return None,
            _ => {}
        }
        text.split(|&byte| byte == b',')
            .map(|word| Pick::parse(word.trim_ascii()))
            .collect::<Option<_>>()
            .map(Self::These)
    }

    /// Reads `CUDA_VISIBLE_DEVICES` and its like: the list ends before the first word that names nothing,
    /// and an empty list hides everything.
    fn parse_visible(text: &[u8]) -> Self {
        let picks: Vec<Pick> =
            text.split(|&byte| byte == b',').map_while(|word| Pick::parse(word.trim_ascii())).collect();
        if picks.is_empty() { Self::None } else { Self::These(picks) }
    }
}

impl Pick {
    fn parse(word: &[u8]) -> Option<Self> {
        if word.starts_with(b"GPU-") || word.starts_with(b"MIG-") {
            return Some(Self::Id(word.to_vec()));
        }
        let text = std::str::from_utf8(word).ok()?;
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        match text.split_once(':') {
            None => Some(Self::Number(number(text)?)),
            Some((gpu, instance)) => Some(Self::Instance { number: number(gpu)?, instance: number(instance)? }),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Instance { number, instance } => write!(f, "{number}:{instance}"),
            Self::Id(id) => String::from_utf8_lossy(id).fmt(f),
        }
    }
}

/// What of one accelerator a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    Whole,
    /// These of its instances.
    Instances(Vec<usize>),
    Nothing,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was said.
    Everything,
    Flag,
    Variable(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "all are taken",
            Self::Flag => "--gpus",
            Self::Variable(name) => name,
        })
    }
}

/// A choice among the accelerators of one vendor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// One for each accelerator handed in.
    pub shares: Vec<Share>,
    pub origin: Origin,
    /// Variables to set, because the numbers in them count anew.
    pub environment: Vec<(&'static str, Vec<u8>)>,
    pub remarks: Vec<Remark>,
}

/// Why a choice is not what one might expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// A variable names what this host has not.
    NoSuch { origin: Origin, pick: Pick },
    /// `CUDA_VISIBLE_DEVICES` counts in CUDA's own order, which depends on the models.
    OrderUnknown,
    /// The variable of a rank: the other ranks' accelerators stay, for copies between them.
    Rank { variable: &'static str },
    /// A MIG identifier does not tell which instance it is.
    InstanceUnknown { origin: Origin, pick: Pick },
}

impl Remark {
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NoSuch { .. } => true,
            Self::InstanceUnknown { origin, .. } => *origin == Origin::Flag,
            Self::OrderUnknown | Self::Rank { .. } => false,
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuch { origin, pick } => write!(f, "{origin} names the GPU `{pick}`, which is not there"),
            Self::OrderUnknown => f.write_str(
                "CUDA_VISIBLE_DEVICES hides no device: the GPUs differ, and CUDA's order of them is not known without \
                 CUDA_DEVICE_ORDER=PCI_BUS_ID",
            ),
            Self::Rank { variable } => write!(
                f,
                "{variable} hides no device: ranks on one host copy between their GPUs, which needs all of them"
            ),
            Self::InstanceUnknown { pick, .. } => {
                write!(f, "`{pick}` does not tell which MIG instance it is: all instances are shown")
            }
        }
    }
}

/// A wish of `--gpus` that can't be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchGpu {
    pub pick: Pick,
    /// How many there are.
    pub count: usize,
}

/// Chooses among the accelerators of one vendor, which are in the order of their numbers.
pub fn select(
    vendor: Vendor,
    gpus: &[&Gpu],
    flag: Option<&Wish>,
    variables: &Variables,
) -> Result<Selection, NoSuchGpu> {
    let numbered: Vec<usize> = (0..gpus.len()).filter(|&at| gpus[at].accessible()).collect();
    let mut selection = Selection {
        shares: gpus.iter().map(|gpu| if gpu.accessible() { Share::Whole } else { Share::Nothing }).collect(),
        origin: Origin::Everything,
        environment: Vec::new(),
        remarks: Vec::new(),
    };
    let (origin, wish) = wish(vendor, gpus, flag, variables, &mut selection.remarks);
    selection.origin = origin;
    let picks = match wish {
        Wish::All => return Ok(selection),
        Wish::None => Vec::new(),
        Wish::These(picks) => picks,
    };
    selection.shares = vec![Share::Nothing; gpus.len()];
    for pick in picks {
        let found = find(&pick, gpus, &numbered);
        if found.is_empty() {
            if origin == Origin::Flag {
                return Err(NoSuchGpu { pick, count: numbered.len() });
            }
            selection.remarks.push(Remark::NoSuch { origin, pick: pick.clone() });
        }
        let is_instance = matches!(&pick, Pick::Id(id) if id.starts_with(b"MIG-"));
        if is_instance && found.iter().any(|(_, share)| *share == Share::Whole) {
            selection.remarks.push(Remark::InstanceUnknown { origin, pick });
        }
        found.into_iter().for_each(|(at, share)| selection.shares[at].add(share));
    }
    let left: Vec<usize> = numbered.iter().copied().filter(|&at| selection.shares[at] != Share::Nothing).collect();
    if left.len() < numbered.len() {
        selection.environment = recounted(vendor, variables, gpus, &numbered, &left);
    }
    Ok(selection)
}

/// Returns what is asked for and by whom.
fn wish(
    vendor: Vendor,
    gpus: &[&Gpu],
    flag: Option<&Wish>,
    variables: &Variables,
    remarks: &mut Vec<Remark>,
) -> (Origin, Wish) {
    if let Some(wish) = flag {
        return (Origin::Flag, wish.clone());
    }
    if vendor == Vendor::Amd {
        return amd_wish(gpus, variables, remarks);
    }
    // Images and container engines set this to `void` or nothing when they mean nothing by it.
    if let Some(wish) =
        variables.nvidia_visible_devices.as_deref().filter(|text| *text != b"void").and_then(Wish::parse)
    {
        return (Origin::Variable("NVIDIA_VISIBLE_DEVICES"), wish);
    }
    let Some(text) = &variables.cuda_visible_devices else { return (Origin::Everything, Wish::All) };
    let wish = Wish::parse_visible(text);
    if variables.one_of_several_ranks {
        remarks.push(Remark::Rank { variable: "CUDA_VISIBLE_DEVICES" });
        return (Origin::Everything, Wish::All);
    }
    let by_number = matches!(&wish, Wish::These(picks) if picks.iter().any(|pick| !matches!(pick, Pick::Id(_))));
    let by_address = variables.cuda_device_order.as_deref() == Some(b"PCI_BUS_ID");
    let alike = gpus.windows(2).all(|pair| pair[0].model == pair[1].model);
    if by_number && !by_address && !alike {
        remarks.push(Remark::OrderUnknown);
        return (Origin::Everything, Wish::All);
    }
    (Origin::Variable("CUDA_VISIBLE_DEVICES"), wish)
}

/// What ROCm's runtime hides, and HIP of what is left.
fn amd_wish(gpus: &[&Gpu], variables: &Variables, remarks: &mut Vec<Remark>) -> (Origin, Wish) {
    const ROCR: &str = "ROCR_VISIBLE_DEVICES";
    const HIP: &str = "HIP_VISIBLE_DEVICES";
    let (variable, wish) = match (&variables.rocr_visible_devices, &variables.hip_visible_devices) {
        (None, None) => return (Origin::Everything, Wish::All),
        (Some(text), None) => (ROCR, Wish::parse_visible(text)),
        (None, Some(text)) => (HIP, Wish::parse_visible(text)),
        (Some(rocr), Some(hip)) => {
            let numbered: Vec<usize> = (0..gpus.len()).filter(|&at| gpus[at].accessible()).collect();
            let by_rocr = seen(rocr, gpus, &numbered);
            let number = |at: &usize| numbered.iter().position(|other| other == at);
            let picks = seen(hip, gpus, &by_rocr).iter().filter_map(number).map(Pick::Number).collect();
            (HIP, Wish::These(picks))
        }
    };
    if variables.one_of_several_ranks {
        remarks.push(Remark::Rank { variable });
        return (Origin::Everything, Wish::All);
    }
    (Origin::Variable(variable), wish)
}

/// Returns the accelerators that a list of `*_VISIBLE_DEVICES` leaves, in its order; numbers count `numbered`.
fn seen(list: &[u8], gpus: &[&Gpu], numbered: &[usize]) -> Vec<usize> {
    let Wish::These(picks) = Wish::parse_visible(list) else { return Vec::new() };
    picks.iter().flat_map(|pick| find(pick, gpus, numbered)).map(|(at, _)| at).collect()
}

/// Returns the accelerators that a pick means, and what of each; numbers count `numbered`.
///
/// It is one but for `MIG-UUID`, which the driver alone knows: that means each that has instances.
fn find(pick: &Pick, gpus: &[&Gpu], numbered: &[usize]) -> Vec<(usize, Share)> {
    let one = match pick {
        Pick::Number(number) => numbered.get(*number).map(|&at| (at, Share::Whole)),
        Pick::Instance { number, instance } => numbered.get(*number).and_then(|&at| {
            let usable = gpus[at].instances.iter().enumerate().filter(|(_, instance)| instance.accessible());
            usable.map(|(index, _)| index).nth(*instance).map(|index| (at, Share::Instances(vec![index])))
        }),
        Pick::Id(id) => match id.strip_prefix(b"MIG-") {
            None => numbered.iter().find(|&&at| gpus[at].id.starts_with(id)).map(|&at| (at, Share::Whole)),
            Some(rest) if rest.starts_with(b"GPU-") => find_instance(rest, gpus, numbered),
            Some(_) => {
                let split = numbered.iter().filter(|&&at| !gpus[at].instances.is_empty());
                return split.map(|&at| (at, Share::Whole)).collect();
            }
        },
    };
    one.into_iter().collect()
}

/// Finds the instance that `GPU-UUID/3/0` names: of a GPU instance, a compute instance.
fn find_instance(name: &[u8], gpus: &[&Gpu], numbered: &[usize]) -> Option<(usize, Share)> {
    let mut parts = name.split(|&byte| byte == b'/');
    let id = parts.next()?;
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u32>().ok();
    let (gpu_instance, compute_instance) = (number()?, number()?);
    let &at = numbered.iter().find(|&&at| gpus[at].id == id)?;
    let instance = gpus[at]
        .instances
        .iter()
        .position(|found| (found.gpu_instance, found.compute_instance) == (gpu_instance, compute_instance))?;
    Some((at, Share::Instances(vec![instance])))
}

impl Share {
    fn add(&mut self, more: Self) {
        match (&mut *self, more) {
            (Self::Whole, _) | (_, Self::Nothing) => {}
            (Self::Instances(own), Self::Instances(more)) => {
                own.extend(more);
                own.sort_unstable();
                own.dedup();
            }
            (_, more) => *self = more,
        }
    }
}

/// Returns the variables whose numbers count anew now that only `left` are there.
fn recounted(
    vendor: Vendor,
    variables: &Variables,
    gpus: &[&Gpu],
    numbered: &[usize],
    left: &[usize],
) -> Vec<(&'static str, Vec<u8>)> {
    let mut environment = Vec::new();
    let mut recount = |name, list: &Option<Vec<u8>>, before: &[usize], after: &[usize]| {
        let anew = list.as_ref().and_then(|list| recounted_list(list, gpus, before, after));
        environment.extend(anew.filter(|anew| Some(anew) != list.as_ref()).map(|anew| (name, anew)));
    };
    if vendor == Vendor::Nvidia {
        recount("CUDA_VISIBLE_DEVICES", &variables.cuda_visible_devices, numbered, left);
        return environment;
    }
    recount("ROCR_VISIBLE_DEVICES", &variables.rocr_visible_devices, numbered, left);
    let (mut before, mut after) = (numbered.to_vec(), left.to_vec());
    if let Some(list) = &variables.rocr_visible_devices {
        before = seen(list, gpus, numbered);
        let kept: Vec<usize> = before.iter().copied().filter(|at| left.contains(at)).collect();
        after = if kept.is_empty() { after } else { kept };
    }
    recount("HIP_VISIBLE_DEVICES", &variables.hip_visible_devices, &before, &after);
    environment
}

/// Returns a list whose numbers count `after` instead of `before`; `None` where it names nothing.
///
/// What it names and is hidden falls out. If nothing is left of it, everything that is not hidden is named.
fn recounted_list(list: &[u8], gpus: &[&Gpu], before: &[usize], after: &[usize]) -> Option<Vec<u8>> {
    let Wish::These(picks) = Wish::parse_visible(list) else { return None };
    let words: Vec<String> = picks
        .iter()
        .filter_map(|pick| {
            let found = find(pick, gpus, before);
            let number = found.iter().find_map(|(at, _)| after.iter().position(|other| other == at))?;
            Some(match pick {
                Pick::Number(_) => number.to_string(),
                Pick::Instance { instance, .. } => format!("{number}:{instance}"),
                Pick::Id(_) => pick.to_string(),
            })
        })
        .collect();
    let words = if words.is_empty() { (0..after.len()).map(|number| number.to_string()).collect() } else { words };
    Some(words.join(",").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::{MigInstance, Node};
    use starter::paths::HostPath;

    fn gpu(number: usize, model: &str) -> Gpu {
        Gpu {
            vendor: Vendor::Nvidia,
            id: format!("GPU-{number}{number}-uuid").into_bytes(),
            model: model.into(),
            nodes: vec![Node { path: HostPath::new(format!("/dev/nvidia{number}")), refused: None }],
            instances: Vec::new(),
        }
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let find = |name| pairs.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_bytes().to_vec());
        Variables {
            nvidia_visible_devices: find("NVIDIA"),
            cuda_visible_devices: find("CUDA"),
            cuda_device_order: find("ORDER"),
            rocr_visible_devices: find("ROCR"),
            hip_visible_devices: find("HIP"),
            one_of_several_ranks: find("RANK").is_some(),
        }
    }

    /// Checks which of four equal accelerators are left, and what `CUDA_VISIBLE_DEVICES` becomes.
    #[track_caller]
    fn check(flag: Option<&str>, pairs: &[(&str, &str)], expected: &[usize], variable: Option<&str>) {
        let gpus: Vec<Gpu> = (0..4).map(|number| gpu(number, "H200")).collect();
        check_among(&gpus, flag, pairs, expected, variable);
    }

    #[track_caller]
    fn check_among(
        gpus: &[Gpu],
        flag: Option<&str>,
        pairs: &[(&str, &str)],
        expected: &[usize],
        variable: Option<&str>,
    ) -> Selection {
        let flag = flag.map(|text| Wish::parse(text.as_bytes()).expect("a wish"));
        let gpus: Vec<&Gpu> = gpus.iter().collect();
        let selection =
            select(Vendor::Nvidia, &gpus, flag.as_ref(), &variables(pairs)).expect("a selection that can be met");
        let left: Vec<usize> = (0..gpus.len()).filter(|&at| selection.shares[at] != Share::Nothing).collect();
        assert_eq!(left, expected);
        let found = selection.environment.first().map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        assert_eq!(found.as_deref(), variable);
        selection
    }

    #[test]
    fn everything_is_taken_where_nothing_is_said() {
        check(None, &[], &[0, 1, 2, 3], None);
        check(None, &[("NVIDIA", "void")], &[0, 1, 2, 3], None);
        check(None, &[("NVIDIA", "")], &[0, 1, 2, 3], None);
        check(None, &[("NVIDIA", "all")], &[0, 1, 2, 3], None);
        check(Some("all"), &[("NVIDIA", "1"), ("CUDA", "2")], &[0, 1, 2, 3], None);
    }

    #[test]
    fn the_flag_is_stronger_than_the_variables() {
        check(Some("0,2"), &[("NVIDIA", "1")], &[0, 2], None);
        check(Some("device=3"), &[], &[3], None);
        check(Some("none"), &[], &[], None);
        check(None, &[("NVIDIA", "1"), ("CUDA", "1,2")], &[1], Some("0"));
        check(None, &[("NVIDIA", "GPU-22")], &[2], None);
    }

    #[test]
    fn numbers_in_a_variable_count_anew_among_what_is_left() {
        check(None, &[("CUDA", "3,1")], &[1, 3], Some("1,0"));
        check(None, &[("CUDA", "2")], &[2], Some("0"));
        check(None, &[("CUDA", "0,1,2,3")], &[0, 1, 2, 3], None);
        check(None, &[("CUDA", "GPU-33,GPU-00")], &[0, 3], None);
        check(Some("1,2"), &[("CUDA", "2,3")], &[1, 2], Some("1"));
        check(Some("1,2"), &[("CUDA", "3")], &[1, 2], Some("0,1"));
    }

    #[test]
    fn a_variable_that_hides_everything_hides_everything() {
        for value in ["", "-1", "NoDevFiles"] {
            check(None, &[("CUDA", value)], &[], None);
        }
        check(None, &[("CUDA", "1,-1,2")], &[1], Some("0"));
    }

    #[test]
    fn what_a_variable_names_and_is_not_there_is_said() {
        let gpus = [gpu(0, "H200"), gpu(1, "H200")];
        let selection = check_among(&gpus, None, &[("NVIDIA", "1,7")], &[1], None);
        let said: Vec<String> = selection.remarks.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["NVIDIA_VISIBLE_DEVICES names the GPU `7`, which is not there"]);
    }

    #[test]
    fn a_flag_that_names_what_is_not_there_fails() {
        let gpu = gpu(0, "H200");
        let wish = Wish::parse(b"0,1").unwrap();
        let error = select(Vendor::Nvidia, &[&gpu], Some(&wish), &Variables::default()).unwrap_err();
        assert_eq!(error, NoSuchGpu { pick: Pick::Number(1), count: 1 });
    }

    #[test]
    fn numbers_count_what_the_device_rules_of_a_job_allow() {
        let mut gpus: Vec<Gpu> = (0..4).map(|number| gpu(number, "H200")).collect();
        for at in [0, 2] {
            gpus[at].nodes[0].refused = Some(1);
        }
        check_among(&gpus, None, &[], &[1, 3], None);
        check_among(&gpus, Some("1"), &[], &[3], None);
        check_among(&gpus, None, &[("CUDA", "0,1")], &[1, 3], None);
    }

    #[test]
    fn different_models_are_hidden_only_where_the_order_is_known() {
        let gpus = [gpu(0, "T400"), gpu(1, "H200")];
        let selection = check_among(&gpus, None, &[("CUDA", "0")], &[0, 1], None);
        assert_eq!(selection.remarks, [Remark::OrderUnknown]);
        check_among(&gpus, None, &[("CUDA", "1"), ("ORDER", "PCI_BUS_ID")], &[1], Some("0"));
        check_among(&gpus, None, &[("CUDA", "GPU-11")], &[1], None);
    }

    #[test]
    fn ranks_keep_each_others_accelerators_in_sight() {
        let gpus = [gpu(0, "H200"), gpu(1, "H200")];
        let selection = check_among(&gpus, None, &[("CUDA", "1"), ("RANK", "")], &[0, 1], None);
        assert_eq!(selection.remarks, [Remark::Rank { variable: "CUDA_VISIBLE_DEVICES" }]);
        check_among(&gpus, None, &[("NVIDIA", "1"), ("RANK", "")], &[1], None);
    }

    #[test]
    fn instances_are_picked_by_number_and_by_identifier() {
        let mut whole = gpu(0, "H200");
        whole.instances = [(1, 0), (2, 0), (2, 1)]
            .map(|(gpu_instance, compute_instance)| MigInstance { gpu_instance, compute_instance, nodes: Vec::new() })
            .into();
        let gpus = [whole, gpu(1, "H200")];
        let shares = |flag: &str| check_among(&gpus, Some(flag), &[], &[0], None);
        assert_eq!(shares("0:1").shares[0], Share::Instances(vec![1]));
        assert_eq!(shares("0:2,0:0,0:2").shares[0], Share::Instances(vec![0, 2]));
        assert_eq!(shares("0:1,0").shares[0], Share::Whole);
        assert_eq!(shares("MIG-GPU-00-uuid/2/1").shares[0], Share::Instances(vec![2]));
        let by_id = shares("MIG-8a5e");
        assert_eq!(by_id.shares[0], Share::Whole);
        assert!(matches!(by_id.remarks[..], [Remark::InstanceUnknown { .. }]));
    }

    #[test]
    fn an_identifier_that_the_driver_alone_knows_hides_no_instance() {
        let instance = MigInstance { gpu_instance: 1, compute_instance: 0, nodes: Vec::new() };
        let split = |number| Gpu { instances: vec![instance.clone()], ..gpu(number, "H200") };
        let gpus = [split(0), gpu(1, "H200"), split(2)];
        let selection = check_among(&gpus, None, &[("CUDA", "MIG-8a5e")], &[0, 2], None);
        let [remark] = &selection.remarks[..] else { panic!("one remark") };
        assert!(!remark.is_warning());
        let selection = check_among(&gpus, Some("MIG-8a5e"), &[], &[0, 2], None);
        assert!(selection.remarks[0].is_warning(), "who asks for one has to know that it is more");
        let whole: Vec<Gpu> = (0..2).map(|number| gpu(number, "H200")).collect();
        let selection = check_among(&whole, None, &[("CUDA", "MIG-8a5e")], &[], Some(""));
        assert_eq!(
            selection.remarks[0].to_string(),
            "CUDA_VISIBLE_DEVICES names the GPU `MIG-8a5e`, which is not there"
        );
    }

    #[test]
    fn instances_of_other_jobs_are_not_counted() {
        let refused = |refused| vec![Node { path: HostPath::new("/dev/nvidia-caps/nvidia-cap4"), refused }];
        let mut split = gpu(0, "H200");
        split.instances =
            [Some(1), None].map(|why| MigInstance { gpu_instance: 1, compute_instance: 0, nodes: refused(why) }).into();
        let selection = check_among(&[split], Some("0:0"), &[], &[0], None);
        assert_eq!(selection.shares[0], Share::Instances(vec![1]));
    }

    #[test]
    fn of_what_rocm_leaves_hip_takes_its_numbers() {
        let gpus: Vec<Gpu> = (0..4).map(|number| Gpu { vendor: Vendor::Amd, ..gpu(number, "MI300X") }).collect();
        let gpus: Vec<&Gpu> = gpus.iter().collect();
        for (flag, pairs, expected, environment) in [
            (None, &[("HIP", "2")][..], &[2][..], "HIP_VISIBLE_DEVICES=0"),
            (None, &[("ROCR", "1,3")], &[1, 3], "ROCR_VISIBLE_DEVICES=0,1"),
            (None, &[("ROCR", "3,1"), ("HIP", "0")], &[3], "ROCR_VISIBLE_DEVICES=0"),
            (None, &[("ROCR", "3,1"), ("HIP", "1,0")], &[1, 3], "ROCR_VISIBLE_DEVICES=1,0"),
            (None, &[("ROCR", "1"), ("HIP", "1")], &[], "ROCR_VISIBLE_DEVICES= HIP_VISIBLE_DEVICES="),
            (None, &[("HIP", "-1")], &[], ""),
            (Some("2"), &[("HIP", "2,3")], &[2], "HIP_VISIBLE_DEVICES=0"),
            (
                Some("1,2"),
                &[("ROCR", "3,2,1"), ("HIP", "2")],
                &[1, 2],
                "ROCR_VISIBLE_DEVICES=1,0 HIP_VISIBLE_DEVICES=1",
            ),
            (Some("0"), &[("ROCR", "3"), ("HIP", "0")], &[0], "ROCR_VISIBLE_DEVICES=0"),
            (None, &[("ROCR", "1"), ("RANK", "")], &[0, 1, 2, 3], ""),
        ] {
            let flag = flag.map(|text: &str| Wish::parse(text.as_bytes()).expect("a wish"));
            let selection = select(Vendor::Amd, &gpus, flag.as_ref(), &variables(pairs)).expect("a selection");
            let left: Vec<usize> = (0..gpus.len()).filter(|&at| selection.shares[at] != Share::Nothing).collect();
            let said: Vec<String> = selection
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
                .collect();
            assert_eq!((&left[..], said.join(" ").as_str()), (expected, environment), "{flag:?} {pairs:?}");
        }
    }

    #[test]
    fn words_that_pick_nothing_are_refused() {
        for text in ["", "x", "1,,2", "-1", "+1", "1:", "1:x", "99999999999999999999999"] {
            assert_eq!(Wish::parse(text.as_bytes()), None, "{text}");
        }
    }
}
