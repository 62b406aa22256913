//! An API server in memory, for tests: objects with resource versions, and faults on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

type Meddling = Box<dyn FnOnce(&mut BTreeMap<String, Value>) + Send>;

#[derive(Default)]
struct Inner {
    /// By the last parts of their path, such as `pods/n-1-0`.
    objects: BTreeMap<String, Value>,
    /// `GET pods/n-1-0`, in order.
    asked: Vec<String>,
    /// The next request that begins so is answered with this code; 0: never.
    faults: Vec<(String, u16)>,
    /// What somebody else does just before the next write.
    meddling: Option<Meddling>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Inner>>);

impl Fake {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic")
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                let parts: Vec<_> = head.uri.path().rsplit('/').take(2).collect();
                let path = format!("{}/{}", parts[1], parts[0]);
                let (code, answer) = fake.answer(&head.method, &path, &body);
                if code == 0 {
                    std::future::pending::<()>().await;
                }
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = StatusCode::from_u16(code).expect("a status");
                Ok::<_, std::io::Error>(response)
            }
        });
        Client::new(server, "larder")
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let mut inner = self.lock();
        let request = format!("{method} {path}");
        inner.asked.push(request.clone());
        if let Some(at) = inner.faults.iter().position(|(begin, _)| request.starts_with(begin)) {
            let (_, code) = inner.faults.remove(at);
            return (code, status(code));
        }
        if *method == Method::PUT {
            let meddling = inner.meddling.take();
            if let Some(meddling) = meddling {
                meddling(&mut inner.objects);
            }
            let mut object: Value = serde_json::from_slice(body).expect("an object");
            let Some(there) = inner.objects.get(path) else { return (404, status(404)) };
            if version(there) != version(&object) {
                return (409, status(409));
            }
            object["metadata"]["resourceVersion"] = json!((version(there) + 1).to_string());
            inner.objects.insert(path.to_owned(), object);
        }
        inner.objects.get(path).map_or_else(|| (404, status(404)), |object| (200, object.clone()))
    }

    /// Makes the object, or makes it anew.
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let name = path.split('/').nth(1).unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!("1");
        self.lock().objects.insert(path.to_owned(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.lock().objects.get(path).cloned().unwrap_or_default()
    }

    pub(crate) fn delete(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    /// The next request that begins so fails with this code; 0: it is never answered.
    pub(crate) fn fails(&self, begin: &str, code: u16) {
        self.lock().faults.push((begin.to_owned(), code));
    }

    /// Somebody else changes something just before the next write.
    pub(crate) fn meddles(
        &self,
        meddling: impl FnOnce(&mut BTreeMap<String, Value>) + Send + 'static,
    ) {
        self.lock().meddling = Some(Box::new(meddling));
    }

    /// What was asked since it was asked for last.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().asked)
    }
}

/// Makes another version of the object, as every write does.
pub(crate) fn touch(object: &mut Value) {
    object["metadata"]["resourceVersion"] = json!((version(object) + 1).to_string());
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn status(code: u16) -> Value {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Fault",
    };
    let message = "as the test wants it";
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message })
}
