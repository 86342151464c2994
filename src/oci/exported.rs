//! What a SIF file says of itself as the configuration of an image, for Docker, Podman and whoever else runs those.
//!
//! ```text
//! the configuration that was kept ─┐
//! labels                           ├──► configuration        one layer, whose digest is new
//! runscript, environment scripts ──┘
//! ```
//!
//! A SIF file that was made from an image and not changed runs as that image did. What a definition file added, scripts
//! say, and other runtimes don't read them: then the entry point is a shell that does.

use super::digest::Digest;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The variable that programs are found by where an image says nothing of it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The environment script that says no more than the configuration it was made from.
const CONFIGURED_ENVIRONMENT: &str = "/.singularity.d/env/10-docker2singularity.sh";
/// Scripts that come with every image, and matter to no program of it.
const USUAL_ENVIRONMENT: [&str; 4] = ["01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh"];
/// Reads what the image's own scripts say, and runs its runscript with the arguments of the container.
const ENTRYPOINT: &str = "\
for script in /.singularity.d/env/*.sh; do
    [ ! -f \"$script\" ] || . \"$script\"
done
[ ! -x /.singularity.d/runscript ] || exec /.singularity.d/runscript \"$@\"
[ $# -gt 0 ] || set -- /bin/sh
exec \"$@\"";

/// What a SIF file says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The configuration of the image that it was made from.
    pub kept: Option<&'a [u8]>,
    pub runscript: &'a [u8],
    /// By path.
    pub environment: &'a BTreeMap<String, Vec<u8>>,
    pub labels: &'a BTreeMap<String, String>,
    /// By Go's name for it.
    pub architecture: &'a str,
    /// As RFC 3339 writes it.
    pub created: &'a str,
}

/// The configuration of an image that has one layer.
pub fn configuration(said: &Said, diff_id: &Digest) -> Vec<u8> {
    let kept = said.kept.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(bytes).ok());
    let mut image = kept.unwrap_or_default();
    let mut process = match image.remove("config") {
        Some(Value::Object(process)) => process,
        _ => Map::new(),
    };
    if !(is_as_configured(said) && runs_something(&process)) {
        process.insert("Entrypoint".to_owned(), json!(["/bin/sh", "-c", ENTRYPOINT, "sh"]));
        process.remove("Cmd");
    }
    let has_env = process.get("Env").and_then(Value::as_array).is_some_and(|env| !env.is_empty());
    if !has_env {
        process.insert("Env".to_owned(), json!([PATH]));
    }
    let mut labels = match process.remove("Labels") {
        Some(Value::Object(labels)) => labels,
        _ => Map::new(),
    };
    labels.extend(said.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))));
    if !labels.is_empty() {
        process.insert("Labels".to_owned(), labels.into());
    }
    let kept_architecture = image.get("architecture").and_then(Value::as_str) == Some(said.architecture);
    if !kept_architecture {
        image.remove("variant");
    }
    image.entry("created").or_insert_with(|| said.created.into());
    image.insert("architecture".to_owned(), said.architecture.into());
    image.insert("os".to_owned(), "linux".into());
    image.insert("config".to_owned(), process.into());
    image.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": [diff_id.to_string()] }));
    image.insert("history".to_owned(), json!([{ "created": said.created, "created_by": "sifu push" }]));
    // What Docker's oldest versions kept of the container in which an image was made.
    for key in ["container", "container_config", "docker_version", "id", "parent"] {
        image.remove(key);
    }
    Value::from(image).to_string().into_bytes()
}

/// Whether the scripts of the image say what its kept configuration says, and no more.
fn is_as_configured(said: &Said) -> bool {
    let holds = |text: &[u8]| said.runscript.windows(text.len()).any(|window| window == text);
    let is_from_configuration = holds(b"OCI_ENTRYPOINT=") && holds(b"OCI_CMD=");
    let is_usual = |path: &str| {
        path == CONFIGURED_ENVIRONMENT || path.rsplit('/').next().is_some_and(|name| USUAL_ENVIRONMENT.contains(&name))
    };
    let says_more = said.environment.iter().any(|(path, script)| !is_usual(path) && does_something(script));
    said.kept.is_some() && is_from_configuration && !says_more
}

/// Whether a script holds more than comments.
fn does_something(script: &[u8]) -> bool {
    script.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).any(|line| !line.is_empty() && line[0] != b'#')
}

fn runs_something(process: &Map<String, Value>) -> bool {
    let words = |key: &str| process.get(key).and_then(Value::as_array).is_some_and(|words| !words.is_empty());
    words("Entrypoint") || words("Cmd")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: &[u8] = br#"{"created":"2020-01-01T00:00:00Z","architecture":"amd64","os":"linux","variant":"v2",
        "config":{"Env":["PATH=/opt/bin","A=b"],"Entrypoint":["/e"],"Cmd":["c"],"WorkingDir":"/w","User":"ada",
        "Labels":{"one":"1","two":"2"}},"rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{},{}],
        "container":"x"}"#;
    const RUNSCRIPT: &[u8] = b"#!/bin/sh\nOCI_ENTRYPOINT='\"/e\"'\nOCI_CMD='\"c\"'\n";

    fn made(kept: Option<&[u8]>, runscript: &[u8], environment: &[(&str, &str)], architecture: &str) -> Value {
        let environment =
            environment.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        let labels = [("two".to_owned(), "zwei".to_owned())].into();
        let created = "2024-05-06T07:08:09Z";
        let said = Said { kept, runscript, environment: &environment, labels: &labels, architecture, created };
        serde_json::from_slice(&configuration(&said, &Digest::of(b"layer"))).unwrap()
    }

    #[test]
    fn an_image_that_was_not_changed_keeps_its_configuration() {
        let environment = [
            (CONFIGURED_ENVIRONMENT, "#!/bin/sh\nexport A=\"${A:-\"b\"}\""),
            ("/.singularity.d/env/90-environment.sh", "#!/bin/sh\n# Custom environment\n\n"),
        ];
        let image = made(Some(KEPT), RUNSCRIPT, &environment, "amd64");
        let process = json!({"Env": ["PATH=/opt/bin", "A=b"], "Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w",
            "User": "ada", "Labels": {"one": "1", "two": "zwei"}});
        assert_eq!(image["config"], process);
        let own = json!({"type": "layers", "diff_ids": [Digest::of(b"layer").to_string()]});
        assert_eq!((&image["rootfs"], &image["created"]), (&own, &json!("2020-01-01T00:00:00Z")));
        assert_eq!(
            (&image["history"][1], &image["variant"], image.get("container")),
            (&Value::Null, &json!("v2"), None)
        );
    }

    #[track_caller]
    fn check_entrypoint_is_the_scripts(image: &Value) {
        let words = &image["config"]["Entrypoint"];
        assert_eq!((&words[0], &words[2]), (&json!("/bin/sh"), &json!(ENTRYPOINT)));
        assert_eq!(image["config"].get("Cmd"), None);
    }

    #[test]
    fn what_a_definition_file_said_is_run_by_a_shell() {
        let custom = [("/.singularity.d/env/90-environment.sh", "export B=c")];
        let image = made(Some(KEPT), RUNSCRIPT, &custom, "arm64");
        check_entrypoint_is_the_scripts(&image);
        let config = &image["config"];
        assert_eq!((&config["WorkingDir"], &config["Env"][1]), (&json!("/w"), &json!("A=b")));
        assert_eq!((&image["architecture"], image.get("variant")), (&json!("arm64"), None));
        check_entrypoint_is_the_scripts(&made(Some(KEPT), b"#!/bin/sh\nexec /other", &[], "amd64"));
        let image = made(None, b"", &[], "amd64");
        check_entrypoint_is_the_scripts(&image);
        assert_eq!((&image["config"]["Env"], &image["os"]), (&json!([PATH]), &json!("linux")));
        check_entrypoint_is_the_scripts(&made(Some(b"no json"), RUNSCRIPT, &[], "amd64"));
    }
}
