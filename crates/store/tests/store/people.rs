//! Users and tokens.

use larder_model::{Code, Secret, Timestamp};
use larder_store::{ROLE_CLOUD_ADMINISTRATOR, Store, TokenKind, UserNew};

use crate::support::{Folder, assert_not_found, refusal};

async fn with_admin(folder: &Folder) -> Store {
    let store = folder.store().await;
    let user = UserNew {
        name: "admin".into(),
        role: ROLE_CLOUD_ADMINISTRATOR.into(),
        password_hash: Secret::new("$argon2id$first"),
        password_generated: true,
    };
    store.user_create(&user).await.expect("create");
    let refusal = refusal(store.user_create(&user).await);
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::NameTaken, Some("name")));
    store
}

#[tokio::test]
async fn a_users_password_is_replaced_and_never_printed() {
    let folder = Folder::new();
    let store = with_admin(&folder).await;
    assert_eq!(store.user_get("nobody").await.expect("get"), None);
    let user = store.user_get("admin").await.expect("get").expect("there");
    assert!(user.password_generated);
    assert_eq!(user.role, ROLE_CLOUD_ADMINISTRATOR);
    assert!(!format!("{user:?}").contains("argon2"));
    let hash = Secret::new("$argon2id$second");
    store.user_set_password_hash("admin", &hash, false).await.expect("set");
    let user = store.user_get("admin").await.expect("get").expect("there");
    assert_eq!((user.password_hash.clone(), user.password_generated), (hash.clone(), false));
    assert_eq!(store.user_list().await.expect("list"), [user]);
    assert_not_found(store.user_set_password_hash("nobody", &hash, false).await);
}

#[tokio::test]
async fn a_token_leads_to_its_user_until_it_is_revoked() {
    let folder = Folder::new();
    let store = with_admin(&folder).await;
    let created = store.token_create("admin", TokenKind::Api, "ci", None).await.expect("create");
    assert!(!format!("{created:?}").contains(created.secret.expose()));
    let holder = store.token_find(&created.secret).await.expect("find").expect("known");
    assert_eq!(holder.user.name, "admin");
    assert_eq!(holder.token, created.token);
    let listed = store.token_list("admin").await.expect("list");
    assert_eq!(listed.len(), 1);
    let used = listed[0].last_used_at.expect("noted");
    store.token_find(&created.secret).await.expect("find").expect("known");
    let again = store.token_list("admin").await.expect("list");
    assert_eq!(again[0].last_used_at, Some(used), "not written with every request");
    let wrong = Secret::new(format!("{}x", created.secret.expose()));
    assert!(store.token_find(&wrong).await.expect("find").is_none());
    store.token_revoke(&created.token.id).await.expect("revoke");
    assert!(store.token_find(&created.secret).await.expect("find").is_none());
    assert_not_found(store.token_revoke(&created.token.id).await);
    assert_not_found(store.token_create("nobody", TokenKind::Api, "ci", None).await);
}

#[tokio::test]
async fn an_expired_token_is_worth_nothing_and_is_swept() {
    let folder = Folder::new();
    let store = with_admin(&folder).await;
    let past = Some(Timestamp(1_000));
    let old = store.token_create("admin", TokenKind::Session, "", past).await.expect("create");
    assert!(store.token_find(&old.secret).await.expect("find").is_none());
    assert!(store.token_list("admin").await.expect("list").is_empty());
    assert_eq!(store.token_sweep().await.expect("sweep"), 1);
    let future = Some(Timestamp(i64::MAX));
    let new = store.token_create("admin", TokenKind::Session, "", future).await.expect("create");
    assert_eq!(store.token_sweep().await.expect("sweep"), 0);
    assert!(store.token_find(&new.secret).await.expect("find").is_some());
}

#[tokio::test]
async fn all_sessions_but_the_own_one_can_be_ended() {
    let folder = Folder::new();
    let store = with_admin(&folder).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let session = store.token_create("admin", TokenKind::Session, "", None).await;
        sessions.push(session.expect("create"));
    }
    let api = store.token_create("admin", TokenKind::Api, "ci", None).await.expect("create");
    let own = &sessions[1].token.id;
    assert_eq!(store.token_revoke_sessions("admin", Some(own)).await.expect("revoke"), 2);
    assert!(store.token_find(&sessions[0].secret).await.expect("find").is_none());
    assert!(store.token_find(&sessions[1].secret).await.expect("find").is_some());
    assert!(store.token_find(&api.secret).await.expect("find").is_some());
    assert_eq!(store.token_revoke_sessions("admin", None).await.expect("revoke"), 1);
}
