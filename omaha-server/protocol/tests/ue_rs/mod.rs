//! A model of how strictly `ue-rs` reads a response to its checks. It shares no
//! code with the reader under test.

use base64::Engine;
use quick_xml::events::Event;

struct Node {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Node>,
}

impl Node {
    fn only(&self, name: &str) -> Result<&Node, String> {
        self.children
            .iter()
            .find(|child| child.name == name)
            .ok_or_else(|| format!("`{}` has no `{name}`", self.name))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Node> {
        self.children.iter().filter(move |child| child.name == name)
    }

    fn attribute(&self, name: &str) -> Result<&str, String> {
        self.attributes
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
            .ok_or_else(|| format!("`{}` has no attribute `{name}`", self.name))
    }
}

/// Whether `ue-rs` parses the document.
pub(crate) fn check(xml: &str) -> Result<(), String> {
    let response = tree(xml);
    for app in response.all("app") {
        app.attribute("appid")?;
        let check = app.only("updatecheck")?;
        check.attribute("status")?;
        for url in check.only("urls")?.all("url") {
            url.attribute("codebase")?;
        }
        let manifest = check.only("manifest")?;
        manifest.attribute("version")?;
        for package in manifest.only("packages")?.all("package") {
            check_package(package)?;
        }
        for action in manifest.only("actions")?.all("action") {
            check_action(action)?;
        }
    }
    Ok(())
}

fn check_package(package: &Node) -> Result<(), String> {
    package.attribute("name")?;
    let size = package.attribute("size")?;
    size.parse::<usize>()
        .map_err(|_| format!("size `{size}`"))?;
    literal_bool(package.attribute("required")?)?;
    if let Ok(sha1) = package.attribute("hash") {
        base64_of(sha1, 20)?;
    }
    if let Ok(sha256) = package.attribute("hash_sha256") {
        let hex = sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || sha256.len() != 64 {
            return Err(format!("hash_sha256 `{sha256}` is not 32 bytes in hex"));
        }
    }
    Ok(())
}

fn check_action(action: &Node) -> Result<(), String> {
    let event = action.attribute("event")?;
    if !["preinstall", "install", "postinstall", "update"].contains(&event) {
        return Err(format!("event `{event}`"));
    }
    base64_of(action.attribute("sha256")?, 32)?;
    literal_bool(action.attribute("needsadmin").unwrap_or("false"))?;
    literal_bool(action.attribute("IsDeltaPayload").unwrap_or("false"))?;
    literal_bool(action.attribute("DisablePayloadBackoff").unwrap_or("false"))
}

fn literal_bool(text: &str) -> Result<(), String> {
    match text {
        "true" | "false" => Ok(()),
        other => Err(format!("boolean `{other}`")),
    }
}

fn base64_of(text: &str, length: usize) -> Result<(), String> {
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(bytes) if bytes.len() == length => Ok(()),
        _ => Err(format!("`{text}` is not {length} bytes in base64")),
    }
}

fn tree(xml: &str) -> Node {
    let mut reader = quick_xml::Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let mut open = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => open.push(Node {
                name: tag.name().0.to_owned(),
                attributes: tag
                    .attributes()
                    .map(|attribute| {
                        let attribute = attribute.unwrap();
                        (attribute.key.0.to_owned(), attribute.value.into_owned())
                    })
                    .collect(),
                children: Vec::new(),
            }),
            Event::End(_) => {
                let closed = open.pop().unwrap();
                match open.last_mut() {
                    Some(parent) => parent.children.push(closed),
                    None => return closed,
                }
            }
            Event::Eof => panic!("no root"),
            _ => {}
        }
    }
}

#[test]
fn the_model_refuses_what_ue_rs_refuses() {
    const GOOD_HASH: &str = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
    let package = r#"<package name="n" size="1" required="true"/>"#;
    let action = format!(r#"<action event="postinstall" sha256="{GOOD_HASH}"/>"#);
    let check_with = |package: &str, action: &str| {
        check(&format!(
            r#"<response><app appid="a"><updatecheck status="ok"><urls/><manifest version="1">
               <packages>{package}</packages><actions>{action}</actions>
               </manifest></updatecheck></app></response>"#
        ))
    };
    check_with(package, &action).unwrap();
    for (package, action) in [
        (
            r#"<package name="n" size="1" required="True"/>"#,
            action.as_str(),
        ),
        (r#"<package name="n" size="1"/>"#, &action),
        (r#"<package name="n" required="true"/>"#, &action),
        (r#"<package size="1" required="true"/>"#, &action),
        (
            &format!(r#"<package name="n" size="1" required="true" hash_sha256="{GOOD_HASH}"/>"#),
            &action,
        ),
        (package, r#"<action event="postinstall"/>"#),
        (package, r#"<action event="postinstall" sha256="q6s="/>"#),
        (package, &action.replace("postinstall", "reboot")),
    ] {
        assert!(check_with(package, action).is_err(), "{package} {action}");
    }
    let unpadded = r#"<response><app appid="a"><updatecheck status="noupdate"><urls/></updatecheck></app></response>"#;
    assert!(check(unpadded).is_err());
}
