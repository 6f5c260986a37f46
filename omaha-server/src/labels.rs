//! Which app, version, track and board a payload is for. Its surroundings say: a
//! sidecar file, the folders it lies in, its name. What one of them says need not be
//! said by the next. A payload of version 2 may say it itself, under its signature:
//! then that counts where they are silent, and they must not say otherwise, for
//! machines would refuse it.

use std::path::{Component, Path};

use omaha_protocol::{OS_APP_ID, Version, same_app_id, same_version};
use payload::Release;
use serde::Deserialize;
use thiserror::Error;

/// Whom a payload is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// The product.
    pub app_id: String,
    /// The version that the payload installs.
    pub version: Version,
    /// The one track that gets it; all of them without.
    pub track: Option<String>,
    /// The one board that it runs on; all of them without.
    pub board: Option<String>,
    /// The one version that it may be installed over; all of them without.
    pub from_version: Option<Version>,
}

/// What `NAME.json` beside a payload `NAME` may say. Unknown keys are refused, for
/// a mistyped key would widen an offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// See [`Labels::version`].
    pub version: Option<String>,
    /// See [`Labels::track`].
    pub track: Option<String>,
    /// See [`Labels::board`].
    pub board: Option<String>,
    /// See [`Labels::app_id`]; the operating system by default.
    pub app_id: Option<String>,
    /// See [`Labels::from_version`]; a delta of version 1 is only offered with it.
    pub from_version: Option<String>,
}

/// What holds where nothing else is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Defaults {
    /// The track; all of them without.
    pub track: Option<String>,
    /// The board; all of them without.
    pub board: Option<String>,
}

/// Why a payload cannot be labelled.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// Nothing tells the version.
    #[error(
        "its version is unknown; put it into the file name (update-1.2.3.payload), \
         a folder (track/board/1.2.3/) or a file {name}.json"
    )]
    VersionMissing {
        /// The payload's file name.
        name: String,
    },
    /// The name holds several versions.
    #[error("its name holds several versions; say which in a file {name}.json")]
    VersionAmbiguous {
        /// The payload's file name.
        name: String,
    },
    /// Folder and name disagree.
    #[error(
        "its folder says version {folder} but its name {file}; say which in a file {name}.json"
    )]
    VersionsDisagree {
        /// The folder's version.
        folder: String,
        /// The version in the name.
        file: String,
        /// The payload's file name.
        name: String,
    },
    /// Folder and name disagree.
    #[error("its folder says board {folder} but its name {file}; say which in a file {name}.json")]
    BoardsDisagree {
        /// The folder's board.
        folder: String,
        /// The board in the name.
        file: String,
        /// The payload's file name.
        name: String,
    },
    /// More folders than there are things to say.
    #[error(
        "its folders are none of track, track/board, track/board/version; say what it is for in a file {name}.json"
    )]
    FoldersUnclear {
        /// The payload's file name.
        name: String,
    },
    /// The payload's own facts say otherwise.
    #[error(
        "its place or its sidecar gives the {key} as `{said}`, but its signed manifest as \
         `{signed}`, and machines refuse what differs; correct the file {name}.json or the place"
    )]
    ReleaseDisagrees {
        /// The payload's file name.
        name: String,
        /// Of what.
        key: &'static str,
        /// What the surroundings say.
        said: String,
        /// What the payload says.
        signed: String,
    },
    /// A sidecar's version that is none.
    #[error("the file {name}.json gives `{key}` as `{value}`, which is no version like 1.2.3")]
    SidecarVersion {
        /// The payload's file name.
        name: String,
        /// The key in question.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// Labels the payload at `path`, relative to the payload folder.
///
/// Folders are read from the inside out: a last one that looks like a version is
/// it; one that ends in `-usr` or lies in another one is the board; the outermost
/// is the track. A file name is cut at `-` and `_`: a part like `1.2.3` is the
/// version, `amd64` and `arm64` name the boards `amd64-usr` and `arm64-usr`.
pub fn label(
    path: &Path,
    sidecar: Option<&Sidecar>,
    release: &Release,
    defaults: &Defaults,
) -> Result<Labels, LabelError> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let said = sidecar.cloned().unwrap_or_default();
    let folders = Folders::read(path);
    let file = FileName::read(&name);

    let version = match said.version {
        Some(text) => sidecar_version(&name, "version", text)?,
        None => {
            let signed = release.version.as_deref();
            let signed = signed.and_then(|version| version.parse().ok());
            inferred_version(&name, &folders, &file).or_else(|error| signed.ok_or(error))?
        }
    };
    let agree =
        |key, said: &str, signed: &Option<String>, same: fn(&str, &str) -> bool| match signed {
            Some(signed) if !same(said, signed) => Err(LabelError::ReleaseDisagrees {
                name: name.clone(),
                key,
                said: said.to_owned(),
                signed: signed.clone(),
            }),
            _ => Ok(()),
        };
    agree("version", version.as_str(), &release.version, same_version)?;
    if folders.unclear && (said.track.is_none() || said.board.is_none()) {
        return Err(LabelError::FoldersUnclear { name });
    }
    let from_version = said
        .from_version
        .map(|text| sidecar_version(&name, "from_version", text))
        .transpose()?;
    let app_id = said
        .app_id
        .or_else(|| release.app_id.clone())
        .unwrap_or_else(|| OS_APP_ID.to_owned());
    agree("app_id", &app_id, &release.app_id, same_app_id)?;
    let board = match said.board {
        Some(board) => Some(board),
        None => inferred_board(&name, folders.board, file.board)?.or_else(|| release.board.clone()),
    };
    if let Some(board) = &board {
        agree("board", board, &release.board, str::eq_ignore_ascii_case)?;
    }
    Ok(Labels {
        app_id,
        version,
        track: said
            .track
            .or(folders.track)
            .or_else(|| defaults.track.clone()),
        board: board.or_else(|| defaults.board.clone()),
        from_version,
    })
}

fn inferred_version(name: &str, folders: &Folders, file: &FileName) -> Result<Version, LabelError> {
    let name = name.to_owned();
    match (&folders.version, file.versions.as_slice()) {
        (Some(folder), [file]) if folder != file => Err(LabelError::VersionsDisagree {
            folder: folder.to_string(),
            file: file.to_string(),
            name,
        }),
        (Some(version), _) | (None, [version]) => Ok(version.clone()),
        (None, []) => Err(LabelError::VersionMissing { name }),
        (None, _) => Err(LabelError::VersionAmbiguous { name }),
    }
}

fn inferred_board(
    name: &str,
    folder: Option<String>,
    file: Option<String>,
) -> Result<Option<String>, LabelError> {
    match (folder, file) {
        (Some(folder), Some(file)) if !folder.eq_ignore_ascii_case(&file) => {
            Err(LabelError::BoardsDisagree {
                folder,
                file,
                name: name.to_owned(),
            })
        }
        (folder, file) => Ok(folder.or(file)),
    }
}

fn sidecar_version(name: &str, key: &'static str, value: String) -> Result<Version, LabelError> {
    value.parse().map_err(|_| LabelError::SidecarVersion {
        name: name.to_owned(),
        key,
        value,
    })
}

#[derive(Default)]
struct Folders {
    track: Option<String>,
    board: Option<String>,
    version: Option<Version>,
    /// There are more of them than can be told apart.
    unclear: bool,
}

impl Folders {
    fn read(path: &Path) -> Self {
        let mut names: Vec<String> = path
            .parent()
            .into_iter()
            .flat_map(Path::components)
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let mut folders = Self::default();
        if let Some(version) = names.last().and_then(|name| dotted_version(name)) {
            folders.version = Some(version);
            names.pop();
        }
        if names.len() > 1 || names.last().is_some_and(|name| name.ends_with("-usr")) {
            folders.board = names.pop();
        }
        folders.track = names.pop();
        folders.unclear = !names.is_empty();
        folders
    }
}

struct FileName {
    board: Option<String>,
    versions: Vec<Version>,
}

impl FileName {
    fn read(name: &str) -> Self {
        let mut file = Self {
            board: None,
            versions: Vec::new(),
        };
        let mut rest = without_extensions(name);
        while !rest.is_empty() {
            let end = rest.find(['-', '_']).unwrap_or(rest.len());
            let mut word = &rest[..end];
            // The build suffix of a version may hold the separators itself.
            if word.contains('+') {
                word = rest;
            }
            if let Some(version) = dotted_version(word) {
                file.versions.push(version);
            } else if matches!(word, "amd64" | "arm64") {
                file.board = Some(format!("{word}-usr"));
            }
            rest = rest.get(word.len() + 1..).unwrap_or_default();
        }
        file
    }
}

/// A bare number is no version here: it may be anything.
fn dotted_version(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let version = text.parse().ok()?;
    text.contains('.').then_some(version)
}

/// Cuts `.gz`, `.payload` and the like, but no part of a version.
fn without_extensions(mut name: &str) -> &str {
    while let Some((stem, extension)) = name.rsplit_once('.') {
        let is_word = extension.starts_with(|c: char| c.is_ascii_alphabetic())
            && extension.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_word {
            break;
        }
        name = stem;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label_of(path: &str, sidecar: Option<&Sidecar>) -> Result<Labels, LabelError> {
        let release = Release::default();
        label(Path::new(path), sidecar, &release, &Defaults::default())
    }

    #[test]
    fn folders_and_names_tell_version_track_and_board() {
        for (path, version, track, board) in [
            ("update-4152.2.0.payload", "4152.2.0", None, None),
            (
                "flatcar-amd64-4152.2.0.gz",
                "4152.2.0",
                None,
                Some("amd64-usr"),
            ),
            (
                "flatcar_arm64-usr_4152.2.0.payload.gz",
                "4152.2.0",
                None,
                Some("arm64-usr"),
            ),
            (
                "dev-4152.0.0+nightly-20241101-2100.gz",
                "4152.0.0+nightly-20241101-2100",
                None,
                None,
            ),
            ("v1.2.payload", "1.2", None, None),
            ("1.2.3", "1.2.3", None, None),
            ("beta/update-4152.2.0", "4152.2.0", Some("beta"), None),
            (
                "stable/amd64-usr/4152.2.0/update.gz",
                "4152.2.0",
                Some("stable"),
                Some("amd64-usr"),
            ),
            (
                "stable/qemu/4152.2.0/update.gz",
                "4152.2.0",
                Some("stable"),
                Some("qemu"),
            ),
            (
                "stable/4152.2.0/update.gz",
                "4152.2.0",
                Some("stable"),
                None,
            ),
            (
                "amd64-usr/4152.2.0/update.gz",
                "4152.2.0",
                None,
                Some("amd64-usr"),
            ),
            (
                "stable/amd64-usr/update-4152.2.0.gz",
                "4152.2.0",
                Some("stable"),
                Some("amd64-usr"),
            ),
            ("4152.2.0/update.gz", "4152.2.0", None, None),
            (
                "stable/4152.2.0/flatcar-amd64-4152.2.0.gz",
                "4152.2.0",
                Some("stable"),
                Some("amd64-usr"),
            ),
        ] {
            let labels = label_of(path, None).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(labels.version.as_str(), version, "{path}");
            assert_eq!(labels.track.as_deref(), track, "{path}");
            assert_eq!(labels.board.as_deref(), board, "{path}");
            assert_eq!(labels.app_id, OS_APP_ID);
            assert_eq!(labels.from_version, None);
        }
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        for path in [
            "update.payload",
            "update-7.gz",
            "stable/amd64-usr/update.gz",
        ] {
            let error = label_of(path, None).unwrap_err();
            assert!(
                matches!(error, LabelError::VersionMissing { .. }),
                "{path}: {error}"
            );
        }
        for path in ["delta-1.2.3-1.2.4.gz", "1.2.3_1.2.4"] {
            let error = label_of(path, None).unwrap_err();
            assert!(
                matches!(error, LabelError::VersionAmbiguous { .. }),
                "{path}: {error}"
            );
        }
        let error = label_of("stable/1.2.3/update-1.2.4.gz", None).unwrap_err();
        assert!(
            matches!(error, LabelError::VersionsDisagree { .. }),
            "{error}"
        );
        let error = label_of("a/b/c/1.2.3/update.gz", None).unwrap_err();
        assert!(
            matches!(error, LabelError::FoldersUnclear { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_board_in_the_name_must_be_the_folders() {
        let path = "stable/amd64-usr/4152.2.0/flatcar-arm64-4152.2.0.gz";
        let error = label_of(path, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "its folder says board amd64-usr but its name arm64-usr; \
             say which in a file flatcar-arm64-4152.2.0.gz.json"
        );
        let sidecar = Sidecar {
            board: Some("arm64-usr".into()),
            ..Sidecar::default()
        };
        let labels = label_of(path, Some(&sidecar)).unwrap();
        assert_eq!(labels.board.as_deref(), Some("arm64-usr"));
        let same = "stable/AMD64-usr/4152.2.0/flatcar-amd64-4152.2.0.gz";
        let labels = label_of(same, None).unwrap();
        assert_eq!(labels.board.as_deref(), Some("AMD64-usr"));
    }

    #[test]
    fn the_sidecar_has_the_last_word() {
        let sidecar = Sidecar {
            version: Some("2.0.0".into()),
            track: Some("beta".into()),
            board: Some("arm64-usr".into()),
            app_id: Some("io.example.App".into()),
            from_version: Some("1.0.0".into()),
        };
        for path in [
            "x",
            "stable/amd64-usr/1.2.3/update-1.2.4.gz",
            "a/b/c/d/delta-1.0.0-2.0.0",
        ] {
            let labels = label_of(path, Some(&sidecar)).unwrap();
            assert_eq!(labels.version.as_str(), "2.0.0");
            assert_eq!(labels.track.as_deref(), Some("beta"));
            assert_eq!(labels.board.as_deref(), Some("arm64-usr"));
            assert_eq!(labels.app_id, "io.example.App");
            assert_eq!(labels.from_version, Some("1.0.0".parse().unwrap()));
        }
        let wrong = Sidecar {
            version: Some("latest".into()),
            ..Sidecar::default()
        };
        let error = label_of("stable/1.2.3/update.gz", Some(&wrong)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("update.gz.json gives `version` as `latest`")
        );
        assert!(serde_json::from_str::<Sidecar>(r#"{"from-version": "1.0.0"}"#).is_err());
    }

    #[test]
    fn what_the_payload_says_counts_where_its_place_is_silent_and_must_not_differ() {
        let text = |text: &str| Some(text.to_owned());
        let release = Release {
            app_id: text("{E96281A6-d1af-4bde-9a0a-97b76e56dc57}"),
            board: text("arm64-usr"),
            version: text("1.2.4"),
            ..Release::default()
        };
        let defaults = Defaults {
            track: None,
            board: text("amd64-usr"),
        };
        let label = |path: &str, sidecar: Option<&Sidecar>| {
            label(Path::new(path), sidecar, &release, &defaults)
        };
        for path in ["x", "stable/x", "delta-1.2.3-1.2.4.gz", "update-1.2.4"] {
            let labels = label(path, None).unwrap();
            assert_eq!(labels.version.as_str(), "1.2.4", "{path}");
            assert_eq!(labels.board.as_deref(), Some("arm64-usr"), "{path}");
        }
        for (path, key) in [("update-1.2.5", "version"), ("x-amd64", "board")] {
            let error = label(path, None).unwrap_err().to_string();
            assert!(error.contains(&format!("gives the {key} as")), "{error}");
        }
        let other_app = Sidecar {
            app_id: text("io.example.App"),
            ..Sidecar::default()
        };
        let error = label("x", Some(&other_app)).unwrap_err().to_string();
        assert!(error.contains("gives the app_id as"), "{error}");
    }

    #[test]
    fn defaults_fill_what_nobody_says() {
        let silent = Release::default();
        let defaults = Defaults {
            track: Some("edge".into()),
            board: Some("amd64-usr".into()),
        };
        let labels = label(Path::new("u-1.2.3"), None, &silent, &defaults).unwrap();
        assert_eq!(labels.track.as_deref(), Some("edge"));
        assert_eq!(labels.board.as_deref(), Some("amd64-usr"));
        let labels = label(Path::new("lts/u-arm64-1.2.3"), None, &silent, &defaults).unwrap();
        assert_eq!(labels.track.as_deref(), Some("lts"));
        assert_eq!(labels.board.as_deref(), Some("arm64-usr"));
    }
}
