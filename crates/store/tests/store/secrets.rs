//! Secrets come back, and are nowhere in the files.

use std::fs;

use larder_model::Secret;
use larder_store::{TokenKind, UserNew};

use crate::support::{
    DEFAULT_SHA256, Folder, SYSTEM_PASSWORD, assert_not_found, created, instance_id, secrets,
};

#[tokio::test]
async fn secrets_come_back_also_after_a_restart() {
    let folder = Folder::new();
    let store = folder.store().await;
    created(&store, 1, "one").await;
    assert_eq!(store.instance_secrets(&instance_id(1)).await.expect("secrets"), secrets());
    assert_not_found(store.instance_secrets(&instance_id(2)).await);
    store.close().await;
    let store = folder.open().await.expect("open");
    assert_eq!(store.instance_secrets(&instance_id(1)).await.expect("secrets"), secrets());
}

#[tokio::test]
async fn no_secret_is_in_any_file() {
    let folder = Folder::new();
    let store = folder.store().await;
    created(&store, 1, "one").await;
    let user = UserNew {
        name: "admin".into(),
        role: "cloud-administrator".into(),
        password_hash: Secret::new("$argon2id$hash"),
        password_generated: false,
    };
    store.user_create(&user).await.expect("user");
    let token = store.token_create("admin", TokenKind::Session, "", None).await.expect("token");
    let check = |when: &str| {
        let mut files = 0;
        for entry in fs::read_dir(folder.path()).expect("list") {
            let path = entry.expect("entry").path();
            let content = fs::read(&path).expect("read");
            files += 1;
            for secret in [SYSTEM_PASSWORD, DEFAULT_SHA256, token.secret.expose()] {
                let found = content.windows(secret.len()).any(|w| w == secret.as_bytes());
                assert!(!found, "{when}: a secret is in {}", path.display());
            }
        }
        files
    };
    assert!(check("open") >= 3, "database, journal and key");
    store.close().await;
    check("closed");
}
