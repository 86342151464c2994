//! The documents of an image, in OCI's and in Docker's words: index, manifest, configuration.
//!
//! ```text
//! index ──► one manifest for each platform ──► configuration (JSON)
//!                                         └──► layers, the lowest first
//! ```
//!
//! Documents come from strangers: their digests are checked when they are read, a document that is two kinds at once is
//! refused, and what is not understood is named.

use super::digest::{Digest, NoDigest};
use crate::report::Hint;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// Largest document that is read.
pub const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// Most layers of an image.
pub const MAX_LAYERS: usize = 1000;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The media type of the one layer of a SIF file in a registry.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
/// Where the references of an OCI layout have their names.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A blob by its digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size_bytes: u64,
    pub platform: Option<Platform>,
    pub annotations: BTreeMap<String, String>,
    /// Where a layer is that registries may not hold.
    pub urls: Vec<String>,
}

impl Descriptor {
    /// The name that a layout gives it.
    pub fn name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }

    fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
    }
}

/// What an image runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", text(&self.os), text(&self.architecture))?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// An index or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image of one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// From the lowest.
    pub layers: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

/// What an image says of itself, as far as it is used; the whole of it is kept as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default)]
    pub config: Option<Process>,
    #[serde(default)]
    pub rootfs: Option<RootFs>,
}

/// How an image is run. Docker writes `null` where there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Process {
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// The digests of the layers, unpacked, from the lowest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// Why a document is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentError {
    /// No JSON, or other JSON than expected.
    Json {
        what: &'static str,
        reason: String,
    },
    Digest(NoDigest),
    /// An index and a manifest at once: which one it is taken for decides what the image holds.
    Ambiguous,
    /// Neither an index nor a manifest.
    Neither,
    /// Docker's first format, which was given up in 2019.
    SchemaOne,
    TooManyLayers {
        count: usize,
    },
    /// The index holds nothing for the platform.
    NoPlatform {
        wanted: Box<Platform>,
        there: Vec<Platform>,
    },
    /// The image is for another platform.
    OtherPlatform {
        wanted: Box<Platform>,
        found: Box<Platform>,
    },
    /// Configuration and manifest count different layers.
    LayerCount {
        manifest: usize,
        config: usize,
    },
    /// An artifact and not an image.
    NoImage {
        media_type: String,
    },
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { what, reason } => write!(f, "the {what} can't be understood: {reason}"),
            Self::Digest(error) => error.fmt(f),
            Self::Ambiguous => f.write_str("the manifest is an index and an image at once"),
            Self::Neither => f.write_str("the manifest is neither an index nor an image"),
            Self::SchemaOne => f.write_str("the manifest is in Docker's format of before 2016 (schema 1)"),
            Self::TooManyLayers { count } => write!(f, "the image has {count} layers: at most {MAX_LAYERS} are taken"),
            Self::NoPlatform { wanted, there } => {
                write!(f, "the index holds no image for {wanted}, but for ")?;
                if there.is_empty() {
                    return f.write_str("nothing at all");
                }
                for (number, platform) in there.iter().enumerate() {
                    write!(f, "{}{platform}", if number == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::OtherPlatform { wanted, found } => write!(f, "the image is for {found}, and {wanted} is wanted"),
            Self::LayerCount { manifest, config } => {
                write!(f, "the manifest has {manifest} layers, and the configuration {config}")
            }
            Self::NoImage { media_type } => write!(f, "`{}` is no image that can be run", media_type.escape_default()),
        }
    }
}

impl std::error::Error for DocumentError {}

impl Hint for DocumentError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoPlatform { .. } | Self::OtherPlatform { .. } => "Ask for another machine's image with --arch.",
            Self::SchemaOne => "Have the image pushed again by a tool of this decade.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = DocumentError;

    fn try_from(raw: RawDescriptor) -> Result<Self, DocumentError> {
        Ok(Self {
            media_type: raw.media_type,
            digest: raw.digest.parse().map_err(DocumentError::Digest)?,
            size_bytes: raw.size,
            platform: raw.platform,
            annotations: raw.annotations.unwrap_or_default(),
            urls: raw.urls.unwrap_or_default(),
        })
    }
}

impl Document {
    /// Reads an index or a manifest; which one it is, its own members tell.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawDocument = serde_json::from_slice(bytes)
            .map_err(|error| DocumentError::Json { what: "manifest", reason: error.to_string() })?;
        if raw.schema_version == 1 || raw.fs_layers.is_some() {
            return Err(DocumentError::SchemaOne);
        }
        let all = |raw: Vec<RawDescriptor>| raw.into_iter().map(Descriptor::try_from).collect::<Result<Vec<_>, _>>();
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(all(manifests)?)),
            (None, Some(config), Some(layers)) => {
                if layers.len() > MAX_LAYERS {
                    return Err(DocumentError::TooManyLayers { count: layers.len() });
                }
                let (config, layers) = (config.try_into()?, all(layers)?);
                Ok(Self::Manifest(Manifest { config, layers, annotations: raw.annotations.unwrap_or_default() }))
            }
            (Some(_), ..) => Err(DocumentError::Ambiguous),
            (None, ..) => Err(DocumentError::Neither),
        }
    }
}

impl ImageConfig {
    /// Reads the configuration of an image.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes)
            .map_err(|error| DocumentError::Json { what: "configuration", reason: error.to_string() })
    }

    /// How the image is run.
    pub fn process(&self) -> Process {
        self.config.clone().unwrap_or_default()
    }

    /// When the image was made, in seconds since 1970, if it says so.
    pub fn created_seconds(&self) -> Option<i64> {
        seconds_of(self.created.as_deref()?)
    }

    /// The digests of the unpacked layers.
    pub fn diff_ids(&self) -> Result<Vec<Digest>, DocumentError> {
        let ids = self.rootfs.as_ref().map(|rootfs| rootfs.diff_ids.as_slice()).unwrap_or_default();
        ids.iter().map(|id| id.parse().map_err(DocumentError::Digest)).collect()
    }

    /// Checks that an image that was not chosen from an index is for the platform. One that does not say is.
    pub fn check_platform(&self, wanted: &Platform) -> Result<(), DocumentError> {
        let found = &self.platform;
        let differs = |found: &str, wanted: &str| !found.is_empty() && found != wanted;
        if differs(&found.os, &wanted.os) || differs(&found.architecture, &wanted.architecture) {
            return Err(DocumentError::OtherPlatform {
                wanted: Box::new(wanted.clone()),
                found: Box::new(found.clone()),
            });
        }
        Ok(())
    }
}

/// The seconds since 1970 of a time as RFC 3339 writes it: `2020-01-01T00:00:00.5Z`, `2020-01-01T01:00:00+01:00`.
fn seconds_of(text: &str) -> Option<i64> {
    let number = |from: usize, length: usize| text.get(from..from + length)?.parse::<u32>().ok().map(i64::from);
    let bytes = text.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, separator)| bytes.get(at) != Some(&separator)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // Years that begin with March have their leap day at the end.
    let year = if month <= 2 { year - 1 } else { year };
    let days_of_months = (153 * ((month + 9) % 12) + 2) / 5;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + days_of_months + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + (minute - offset) * 60 + second)
}

impl Platform {
    /// Linux on a machine by Go's name for it, which is Apptainer's too.
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How good an entry for `offered` serves for `self`: the smaller the better, `None` for not at all.
    ///
    /// Variants of one architecture are numbered, and a machine runs those up to its own; what has no number is the
    /// first of its kind (`v8` of arm64, `v1` of amd64, `v7` of arm).
    fn distance(&self, offered: &Platform) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let first = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let number = |variant: &Option<String>| match variant.as_deref() {
            None | Some("") => Some(first),
            Some(variant) => variant.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()),
        };
        match (number(&self.variant), number(&offered.variant)) {
            (Some(wanted), Some(offered)) => wanted.checked_sub(offered),
            _ => (self.variant == offered.variant).then_some(0),
        }
    }
}

/// The entry of an index for a platform; of several that serve, the one with the highest variant, then the first.
pub fn choose<'a>(index: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, DocumentError> {
    let offered = index.iter().filter(|entry| !entry.is_attestation());
    let best = offered.clone().filter_map(|entry| {
        let distance = wanted.distance(entry.platform.as_ref()?)?;
        Some((distance, entry))
    });
    if let Some((_, entry)) = best.min_by_key(|(distance, _)| *distance) {
        return Ok(entry);
    }
    let there = offered.filter_map(|entry| entry.platform.clone()).collect();
    Err(DocumentError::NoPlatform { wanted: Box::new(wanted.clone()), there })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn entry(number: u64, platform: &str) -> Descriptor {
        let mut parts = platform.split('/');
        let mut next = || parts.next().map(str::to_owned);
        let (os, architecture, variant) = (next().unwrap(), next().unwrap(), next());
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(b"x"),
            size_bytes: number,
            platform: Some(Platform { architecture, os, variant }),
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }

    #[track_caller]
    fn chosen(index: &[&str], architecture: &str, variant: Option<&str>) -> Result<u64, String> {
        let index: Vec<Descriptor> = index.iter().enumerate().map(|(n, platform)| entry(n as u64, platform)).collect();
        let wanted = Platform::linux(architecture, variant);
        choose(&index, &wanted).map(|entry| entry.size_bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn the_entry_of_the_platform_is_chosen() {
        let index = ["windows/amd64", "linux/arm64", "linux/amd64", "linux/amd64"];
        assert_eq!(chosen(&index, "amd64", None), Ok(2));
        assert_eq!(chosen(&index, "arm64", Some("v8")), Ok(1));
        assert_eq!(
            chosen(&index[..2], "amd64", None),
            Err("the index holds no image for linux/amd64, but for windows/amd64, linux/arm64".to_owned())
        );
        assert_eq!(
            chosen(&[], "amd64", None),
            Err("the index holds no image for linux/amd64, but for nothing at all".to_owned())
        );
    }

    #[test]
    fn a_machine_runs_variants_up_to_its_own() {
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
        assert_eq!(chosen(&arm, "arm", Some("v6")), Ok(1));
        assert_eq!(chosen(&arm, "arm", None), Ok(2));
        assert_eq!(chosen(&arm, "arm64", None), Ok(3));
        assert!(chosen(&arm[1..], "arm", Some("v5")).is_err());
        let amd = ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"];
        assert_eq!(chosen(&amd, "amd64", None), Ok(2));
        assert_eq!(chosen(&amd, "amd64", Some("v2")), Ok(1));
        assert!(chosen(&amd[..1], "amd64", None).is_err());
    }

    #[test]
    fn attestations_are_no_images() {
        let mut attestation = entry(0, "linux/amd64");
        attestation.annotations.insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned());
        let index = [attestation, entry(1, "linux/amd64")];
        assert_eq!(choose(&index, &Platform::linux("amd64", None)).unwrap().size_bytes, 1);
    }

    fn parsed(text: &str) -> Result<Document, DocumentError> {
        Document::parse(text.replace("HEX", HEX).as_bytes())
    }

    #[test]
    fn a_document_tells_by_its_members_what_it_is() {
        let blob = r#"{"digest":"sha256:HEX","size":3}"#;
        let Ok(Document::Manifest(manifest)) =
            parsed(&format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob},{blob}]}}"#))
        else {
            panic!("a manifest")
        };
        assert_eq!((manifest.layers.len(), manifest.config.size_bytes), (2, 3));
        let index = parsed(&format!(r#"{{"schemaVersion":2,"manifests":[{blob}]}}"#));
        assert!(matches!(index, Ok(Document::Index(entries)) if entries.len() == 1));
        let both = format!(r#"{{"schemaVersion":2,"manifests":[{blob}],"config":{blob},"layers":[]}}"#);
        assert_eq!(parsed(&both), Err(DocumentError::Ambiguous));
        assert_eq!(parsed(r#"{"schemaVersion":2}"#), Err(DocumentError::Neither));
        assert_eq!(parsed(r#"{"schemaVersion":1,"fsLayers":[]}"#), Err(DocumentError::SchemaOne));
    }

    #[test]
    fn what_is_no_document_is_named() {
        assert!(matches!(parsed("<html>"), Err(DocumentError::Json { .. })));
        assert!(matches!(parsed(&"[".repeat(100_000)), Err(DocumentError::Json { .. })));
        let bad = r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../etc/passwd","size":3}]}"#;
        assert!(matches!(parsed(bad), Err(DocumentError::Digest(NoDigest { text })) if text.contains("passwd")));
        let negative = r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:HEX","size":-3}]}"#;
        assert!(matches!(parsed(negative), Err(DocumentError::Json { .. })));
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        let check = |text: &str, expected| assert_eq!(seconds_of(text), expected, "{text}");
        check("1970-01-01T00:00:00Z", Some(0));
        check("2020-02-29T12:34:56.789012345Z", Some(1_582_979_696));
        check("2020-01-01T01:00:00+01:00", Some(1_577_836_800));
        check("2019-12-31T19:00:00-05:00", Some(1_577_836_800));
        check("0001-01-01T00:00:00Z", Some(-62_135_596_800));
        for text in [
            "",
            "yesterday",
            "2020-13-01T00:00:00Z",
            "2020-01-01T00:00:00",
            "2020-01-01 00:00:00+1",
            "-020-01-01T00:00:00Z",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_configuration_may_say_nothing() {
        let config = ImageConfig::parse(br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["a"]}}"#);
        let config = config.unwrap();
        assert_eq!(config.process().cmd, Some(vec!["a".to_owned()]));
        assert_eq!(config.process().env, None);
        assert_eq!(config.diff_ids(), Ok(Vec::new()));
        assert_eq!(config.check_platform(&Platform::linux("amd64", None)), Ok(()));
        assert!(config.check_platform(&Platform::linux("arm64", None)).is_err());
        let silent = ImageConfig::parse(b"{}").unwrap();
        assert_eq!(silent.check_platform(&Platform::linux("arm64", None)), Ok(()));
        assert_eq!(silent.process(), Process::default());
    }
}
