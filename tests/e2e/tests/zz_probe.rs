//! probe
use std::time::{Duration, Instant};
use anyhow::Result;
use larder_e2e::world::connect;
use larder_testkit::{Larder, Reply};
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe() -> Result<()> {
    let larder = Larder::started().await?;
    for n in 0..4 {
        let rw = larder.create(&format!("rw{n}"), &["--architecture", "read-write", "--read-only-nodes", "2"]).await?;
        for k in 0..6 {
            let key = format!("k{k}");
            let t = Instant::now();
            connect(rw.endpoint("write")?).await?.call(&["SET", &key, "v"]).await?;
            let set = t.elapsed();
            let mut misses = 0;
            loop {
                let r = connect(rw.endpoint("read")?).await?.call(&["GET", &key]).await?;
                if r == Reply::Bulk(b"v".to_vec()) { break; }
                misses += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            println!("{n} {k}: set {set:?}, misses {misses}, seen after {:?}", t.elapsed() - set);
        }
    }
    larder.finish().await
}
