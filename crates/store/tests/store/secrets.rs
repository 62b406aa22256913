//! Secrets come back, and are nowhere in the files.

use std::fs;

use larder_model::local::NodeSecrets;
use larder_model::{OperationKind, Secret};
use larder_store::{TokenKind, UserNew};

use crate::support::{
    AGENT_KEY, DEFAULT_SHA256, Folder, SYSTEM_PASSWORD, assert_not_found, created, instance_id,
    operation, record, secrets, spec,
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
async fn agents_of_an_instance_without_a_key_of_their_own_use_its_system_password() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = spec(1, "one");
    let older = NodeSecrets { agent_key: Secret::new(""), ..secrets() };
    let begun = operation(1, &spec, OperationKind::Create);
    let record = record("instance-create", &spec);
    store.instance_create(&spec, &older, &begun, &record).await.expect("created");
    let read = store.instance_secrets(&spec.id).await.expect("secrets");
    assert_eq!(read, older);
    assert_eq!(read.of_agents().expose(), SYSTEM_PASSWORD);
    assert_eq!(secrets().of_agents().expose(), AGENT_KEY);
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
            for secret in [SYSTEM_PASSWORD, DEFAULT_SHA256, AGENT_KEY, token.secret.expose()] {
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
