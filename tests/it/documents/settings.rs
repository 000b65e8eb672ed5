//! `docs/settings.md` is generated from the table of settings.

use super::{read, root};

#[test]
fn settings_document_is_generated_from_the_table_of_settings() {
    let path = root().join("docs/settings.md");
    let generated = chatmesh::config::settings_document();
    if std::env::var_os("UPDATE_SETTINGS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    assert!(
        read(&path) == generated,
        "docs/settings.md is not current. Regenerate it: UPDATE_SETTINGS=1 cargo test --test it \
         documents::settings"
    );
}
