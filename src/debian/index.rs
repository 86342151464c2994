//! The packages of an archive: several `Packages` files as one.

use super::deb822::{self, Deb822Error};
use super::relation::{self, RelationError, is_name};
use super::version;
use crate::oci::digest::Digest;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;

/// Most packages in all indexes; Debian has 65,000.
const MAX_PACKAGES: usize = 1_000_000;

/// A package as its index describes it. Relations are as they stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub architecture: &'a str,
    pub depends: &'a str,
    pub pre_depends: &'a str,
    pub provides: &'a str,
    pub conflicts: &'a str,
    pub breaks: &'a str,
    pub priority: &'a str,
    pub is_essential: bool,
    /// Its path below the address of the archive.
    pub file_name: &'a str,
    pub size_bytes: u64,
    pub digest: Digest,
    /// The number that was given for its index.
    pub repository: usize,
}

/// Packages by name: of each the newest version.
#[derive(Debug, Default)]
pub struct Index<'a> {
    packages: Vec<Package<'a>>,
    by_name: HashMap<&'a str, usize>,
    /// Who stands in for a name, and in which version.
    providers: HashMap<&'a str, Vec<(usize, Option<&'a str>)>>,
}

/// Why an index is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexError {
    Syntax(Deb822Error),
    /// A package without what every package has, or with something else there.
    Package {
        name: String,
        field: &'static str,
    },
    Relation {
        name: String,
        source: RelationError,
    },
    TooMany,
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(error) => error.fmt(f),
            Self::Package { name, field } => {
                write!(f, "package `{}` has no usable `{field}`", name.escape_debug())
            }
            Self::Relation { name, source } => write!(f, "package `{}`: {source}", name.escape_debug()),
            Self::TooMany => write!(f, "it lists more than {MAX_PACKAGES} packages"),
        }
    }
}

impl std::error::Error for IndexError {}

impl<'a> Index<'a> {
    /// Adds a `Packages` file; `repository` says later where its packages are.
    pub fn add(&mut self, text: &'a str, repository: usize) -> Result<(), IndexError> {
        for paragraph in deb822::paragraphs(text) {
            let paragraph = paragraph.map_err(IndexError::Syntax)?;
            let name = paragraph.get("Package").unwrap_or_default();
            let lacks = |field| IndexError::Package { name: name.chars().take(80).collect(), field };
            let needed = |field| paragraph.get(field).filter(|value| !value.is_empty()).ok_or_else(|| lacks(field));
            let relations = |field| paragraph.get(field).unwrap_or_default();
            let digest = needed("SHA256")?.to_ascii_lowercase();
            let package = Package {
                name: needed("Package")?,
                version: needed("Version")?,
                architecture: needed("Architecture")?,
                depends: relations("Depends"),
                pre_depends: relations("Pre-Depends"),
                provides: relations("Provides"),
                conflicts: relations("Conflicts"),
                breaks: relations("Breaks"),
                priority: relations("Priority"),
                is_essential: paragraph.get("Essential") == Some("yes"),
                file_name: needed("Filename")?,
                size_bytes: needed("Size")?.parse().map_err(|_| lacks("Size"))?,
                digest: format!("sha256:{digest}").parse().map_err(|_| lacks("SHA256"))?,
                repository,
            };
            let is_bare = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_name(package.name) {
                return Err(lacks("Package"));
            }
            if !is_name(package.architecture) {
                return Err(lacks("Architecture"));
            }
            if !is_bare(package.version) {
                return Err(lacks("Version"));
            }
            if !is_bare(package.file_name) || package.file_name.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(lacks("Filename"));
            }
            self.enter(package)?;
        }
        Ok(())
    }

    fn enter(&mut self, package: Package<'a>) -> Result<(), IndexError> {
        if self.packages.len() == MAX_PACKAGES {
            return Err(IndexError::TooMany);
        }
        let name = package.name;
        let failed = |source| IndexError::Relation { name: name.to_owned(), source };
        let provided = relation::parse(package.provides).map_err(failed)?;
        if let Some(&known) = self.by_name.get(name)
            && version::compare(self.packages[known].version, package.version) != Ordering::Less
        {
            return Ok(());
        }
        let id = self.packages.len();
        self.packages.push(package);
        self.by_name.insert(name, id);
        for wanted in provided.into_iter().flatten() {
            let version = wanted.version.map(|(_, version)| version);
            self.providers.entry(wanted.name).or_default().push((id, version));
        }
        Ok(())
    }

    /// The package of this name.
    pub fn get(&self, name: &str) -> Option<&Package<'a>> {
        self.by_name.get(name).map(|&id| &self.packages[id])
    }

    /// All packages, each in its newest version, in no order that means anything.
    pub fn packages(&self) -> impl Iterator<Item = &Package<'a>> {
        self.packages.iter().enumerate().filter(|(id, package)| self.by_name[package.name] == *id).map(|(_, p)| p)
    }

    /// The packages that stand in for a name, with the version in which they do.
    pub fn providers(&self, name: &str) -> impl Iterator<Item = (&Package<'a>, Option<&'a str>)> {
        let providers = self.providers.get(name).map_or(&[][..], Vec::as_slice).iter();
        let newest = providers.filter(|(id, _)| self.by_name[self.packages[*id].name] == *id);
        newest.map(|(id, version)| (&self.packages[*id], *version))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A paragraph with what each package has; `rest` comes on top.
    pub fn paragraph(name: &str, version: &str, rest: &str) -> String {
        let hex = Digest::of(name.as_bytes());
        let hex = hex.hex();
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 10\nSHA256: {hex}\n{rest}\n"
        )
    }

    #[test]
    fn the_newest_version_of_a_package_counts() {
        let first = paragraph("a", "1.2", "Provides: x (= 1)\n") + &paragraph("b", "1", "Essential: yes\n");
        let second = paragraph("a", "1.10", "") + &paragraph("b", "0.9", "Provides: x\n");
        let mut index = Index::default();
        index.add(&first, 0).expect("an index");
        index.add(&second, 1).expect("an index");
        let a = index.get("a").expect("a package");
        assert_eq!((a.version, a.repository, a.file_name), ("1.10", 1, "pool/a.deb"));
        assert!(index.get("b").is_some_and(|b| b.is_essential && b.repository == 0));
        assert_eq!(index.packages().count(), 2);
        assert_eq!(index.providers("x").count(), 0);
        assert_eq!(index.get("x"), None);
    }

    #[test]
    fn providers_are_known_with_their_versions() {
        let text = paragraph("m", "2", "Provides: mail-agent, m-api (= 3)\n");
        let mut index = Index::default();
        index.add(&text, 0).expect("an index");
        let of = |name| index.providers(name).map(|(package, version)| (package.name, version)).collect::<Vec<_>>();
        assert_eq!(of("mail-agent"), [("m", None)]);
        assert_eq!(of("m-api"), [("m", Some("3"))]);
    }

    #[test]
    fn what_is_no_package_is_an_error() {
        let check = |text: String, expected: &str| {
            let error = Index::default().add(&text, 0).expect_err("an error").to_string();
            assert_eq!(error, expected);
        };
        let whole = paragraph("a", "1", "");
        check(whole.replace("SHA256", "MD5sum"), "package `a` has no usable `SHA256`");
        check(whole.replace("pool/a.deb", "pool/../../a.deb"), "package `a` has no usable `Filename`");
        check(whole.replace("pool/a.deb", "/etc/a.deb"), "package `a` has no usable `Filename`");
        check(whole.replace("Size: 10", "Size: -1"), "package `a` has no usable `Size`");
        check(whole.replace("Version: 1", "Version: 1 2"), "package `a` has no usable `Version`");
        check(paragraph("../a", "1", ""), "package `../a` has no usable `Package`");
        check(paragraph("a", "1", "Provides: ((\n"), "package `a`: `((` names no package");
        check("x".to_owned(), "line 1: no `Name: value`");
    }
}
