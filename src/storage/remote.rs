//! A bucket of a cloud, or of anything that speaks as S3 does.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, OnceLock, mpsc};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode,
    PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::{Blob, Blobs, Put, StorageError};

/// Larger blobs go in parts, as a request may not take for ever.
const PART_BYTES: usize = 8 << 20;

/// Parts or blobs under way at once.
const AT_ONCE: usize = 8;

/// After so long a request is not tried again.
const RETRY_SECONDS: u64 = 10;

/// A request, and the making of a connection, may take so long unless the environment says otherwise.
const TIMEOUTS: [(ClientConfigKey, &str); 2] =
    [(ClientConfigKey::Timeout, "20 seconds"), (ClientConfigKey::ConnectTimeout, "5 seconds")];

const NO_CREDENTIALS: &str = "there are no credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or \
     AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), and this machine gives none";

pub(super) struct RemoteBlobs {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    location: String,
}

/// Calls block, and may come from a thread of somebody's runtime, which must not drive ours.
fn runtime() -> Result<&'static Runtime, StorageError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let builder =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("storage").enable_all().build();
        builder.map_err(|error| error.to_string())
    };
    RUNTIME
        .get_or_init(start)
        .as_ref()
        .map_err(|reason| StorageError::Unavailable { doing: "starting threads".into(), reason: reason.clone() })
}

impl RemoteBlobs {
    /// A bucket by the scheme of a URL and what follows it.
    pub fn at(scheme: &str, rest: &str) -> Result<RemoteBlobs, StorageError> {
        let invalid = |reason: &str| {
            // Somebody may have written a password there.
            let shown = rest.rsplit_once(['@', '?']).map_or(rest, |_| "...");
            StorageError::InvalidUrl { url: format!("{scheme}://{shown}"), reason: scrubbed(reason) }
        };
        if rest.contains(['@', '?', '#']) {
            return Err(invalid("credentials and options come from the environment, not from the URL"));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(invalid("it names no bucket"));
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|e| invalid(&e.to_string()))?;
        let store = build(scheme, bucket).ok_or_else(|| {
            invalid("what is known are paths, file:///path, s3://bucket/prefix, gs://bucket/prefix and az://container/prefix")
        })?;
        let store = store.map_err(|e| match e.to_string() {
            text if text.contains("Account must be specified") => invalid("AZURE_STORAGE_ACCOUNT_NAME is not set"),
            text => invalid(&text),
        })?;
        let slash = if prefix.as_ref().is_empty() { "" } else { "/" };
        let location = format!("{scheme}://{bucket}{slash}{prefix}");
        Ok(RemoteBlobs { store, prefix, location })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Runs a request on the threads of this room and waits for it.
    fn run<T: Send + 'static>(
        &self,
        doing: impl FnOnce() -> String,
        name: &str,
        request: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (answer, answered) = mpsc::channel();
        runtime()?.spawn(async move {
            // Nobody has stopped waiting.
            let _ = answer.send(request.await);
        });
        match answered.recv() {
            Ok(outcome) => outcome.map_err(|error| self.failed(doing(), name, error)),
            Err(_) => Err(StorageError::Invariant(format!("{}: the request ended without an answer", doing()))),
        }
    }

    fn failed(&self, doing: String, name: &str, error: Error) -> StorageError {
        let reason = scrubbed(&with_cause(&error));
        let says = |word: &str| reason.contains(word);
        match error {
            _ if says("NoSuchBucket") || says("ContainerNotFound") || says("The specified bucket does not exist") => {
                StorageError::InvalidUrl { url: self.location.clone(), reason: "there is no such bucket".into() }
            }
            Error::NotFound { .. } => StorageError::NotFound { name: format!("{}/{name}", self.location) },
            // Without credentials it asks the machine that it runs on, which only a cloud's own has.
            _ if says("169.254.169.254") || says("169.254.170.2") || says("metadata.google.internal") => {
                StorageError::Denied { doing, reason: format!("{NO_CREDENTIALS} ({reason})") }
            }
            // Not all requests tell these apart by the kind of the error; whoever gives tokens calls a wrong password a bad request.
            _ if says("status code: 401") || says("status code: 403") => StorageError::Denied { doing, reason },
            _ if says("token request") && says("status code: 400") => StorageError::Denied { doing, reason },
            _ if says("507 Insufficient Storage") || says("QuotaExceeded") || says("StorageFull") => {
                StorageError::Full { doing, reason }
            }
            _ => StorageError::Unavailable { doing, reason },
        }
    }
}

fn build(scheme: &str, bucket: &str) -> Option<Result<Arc<dyn ObjectStore>, Error>> {
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        retry_timeout: std::time::Duration::from_secs(RETRY_SECONDS),
        ..RetryConfig::default()
    };
    let timeouts = |prefix: &str| {
        let unset =
            |key: &ClientConfigKey| std::env::var_os(format!("{prefix}_{}", key.as_ref().to_uppercase())).is_none();
        TIMEOUTS.into_iter().filter(move |(key, _)| unset(key)).collect::<Vec<_>>()
    };
    fn shared<S: ObjectStore>(store: Result<S, Error>) -> Result<Arc<dyn ObjectStore>, Error> {
        store.map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
    }
    Some(match scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            for (key, value) in timeouts("AWS") {
                builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            shared(builder.with_conditional_put(S3ConditionalPut::ETagMatch).build())
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
            for (key, value) in timeouts("GOOGLE") {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            shared(builder.build())
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
            for (key, value) in timeouts("AZURE") {
                builder = builder.with_config(AzureConfigKey::Client(key), value);
            }
            shared(builder.build())
        }
        _ => return None,
    })
}

/// What an error says, and what is at the bottom of it: that a connection was refused, for example.
fn with_cause(error: &Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    if let Some(cause) = causes.last().map(ToString::to_string).filter(|cause| !text.contains(cause)) {
        text = format!("{text}: {cause}");
    }
    text
}

/// True for a variable whose value is never shown.
fn is_secret(variable: &str) -> bool {
    let key = variable.to_ascii_lowercase();
    match variable.split_once('_') {
        Some(("AWS", "SSE_CUSTOMER_KEY_BASE64")) => true,
        Some(("AWS", _)) => matches!(key.parse(), Ok(AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token)),
        Some(("AZURE", _)) => matches!(
            key.parse(),
            Ok(AzureConfigKey::AccessKey
                | AzureConfigKey::ClientSecret
                | AzureConfigKey::SasKey
                | AzureConfigKey::Token
                | AzureConfigKey::FabricSessionToken)
        ),
        Some(("GOOGLE", _)) => matches!(key.parse(), Ok(GoogleConfigKey::ServiceAccountKey)),
        _ => false,
    }
}

/// An answer on one line, without the parts of a URL or a body that may hold secrets.
fn scrubbed(text: &str) -> String {
    let secrets = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_secret));
    scrubbed_of(text, secrets.filter_map(|(_, value)| value.into_string().ok()))
}

fn scrubbed_of(text: &str, secrets: impl Iterator<Item = String>) -> String {
    let mut text = text.to_string();
    // Of a body in XML, which may repeat what was signed, only what it says.
    if let Some(body) = text.find("<?xml").or_else(|| text.find("<Error>")) {
        let tag = |name: &str| {
            let (_, rest) = text[body..].split_once(&format!("<{name}>"))?;
            Some(rest.split_once("</")?.0.to_string())
        };
        let says: Vec<String> = [tag("Code"), tag("Message")].into_iter().flatten().collect();
        // Azure begins it with the mark of UTF-8.
        text = format!("{}{}", text[..body].trim_end_matches('\u{feff}'), says.join(": "));
    }
    for secret in secrets.filter(|secret| !secret.is_empty()) {
        text = text.replace(&secret, "...");
    }
    let words = text.split_whitespace().map(|word| {
        let Some((before, url)) = word.split_once("://") else {
            return word.to_string();
        };
        let url = url.split_once('?').map_or(url, |(url, _)| url);
        // A password stands before the host, of a proxy for example.
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        format!("{before}://{}{path}", host.rsplit_once('@').map_or(host, |(_, host)| host))
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Writes a large object in parts. It is there once all are.
async fn put_parts(store: &dyn ObjectStore, path: &Path, chunks: Vec<Bytes>) -> Result<(), Error> {
    let mut upload = store.put_multipart(path).await?;
    let mut rest = chunks.into_iter().filter(|chunk| !chunk.is_empty()).peekable();
    let mut parts = Vec::new();
    while rest.peek().is_some() {
        let (mut part, mut room) = (Vec::new(), PART_BYTES);
        while let Some(chunk) = rest.peek_mut().filter(|_| room > 0) {
            let piece = chunk.split_to(room.min(chunk.len()));
            room -= piece.len();
            part.push(piece);
            if !chunk.has_remaining() {
                rest.next();
            }
        }
        parts.push(upload.put_part(part.into_iter().collect::<PutPayload>()));
    }
    let outcome = match stream::iter(parts).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await {
        Ok(_) => upload.complete().await.map(drop),
        Err(error) => Err(error),
    };
    if outcome.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::warn!(%path, error = scrubbed(&with_cause(&error)), "parts of an upload that failed stay in the bucket");
    }
    outcome
}

async fn get(store: &dyn ObjectStore, path: &Path, range: Option<Range<u64>>) -> Result<Bytes, Error> {
    let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
    store.get_opts(path, options).await?.bytes().await
}

/// What `heeds_conditions` writes once, and leaves there.
const PROBE: &str = "tmp/condition";

/// Refuses a server that overwrites what it was told to leave, as older ones do: there two processes could not be told apart.
fn heeds_conditions(blobs: &dyn Blobs) -> Result<(), StorageError> {
    let put = || blobs.put(PROBE, &[Bytes::from_static(b"put where nothing is\n")], true);
    if put()? == Put::Taken || put()? == Put::Taken {
        return Ok(());
    }
    let reason = "its server does not heed conditional puts (If-None-Match, or x-goog-if-generation-match on gs://), by which one \
                  process at a time writes";
    Err(StorageError::InvalidUrl { url: blobs.location(), reason: reason.into() })
}

impl Blobs for RemoteBlobs {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn lock(&self) -> Result<(), StorageError> {
        heeds_conditions(self)
    }

    fn put(&self, name: &str, chunks: &[Bytes], create_only: bool) -> Result<Put, StorageError> {
        let (store, path, chunks) = (self.store.clone(), self.path(name), chunks.to_vec());
        let length: usize = chunks.iter().map(Bytes::len).sum();
        self.run(|| format!("writing {}/{name}", self.location), name, async move {
            if !create_only && length > PART_BYTES {
                return put_parts(&*store, &path, chunks).await.map(|()| Put::Done);
            }
            let mode = if create_only { PutMode::Create } else { PutMode::Overwrite };
            match store.put_opts(&path, chunks.into_iter().collect(), mode.into()).await {
                Err(Error::AlreadyExists { .. }) if create_only => Ok(Put::Taken),
                outcome => outcome.map(|_| Put::Done),
            }
        })
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        // No request can ask for nothing.
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            return Ok(Bytes::new());
        }
        let (store, path, asked) = (self.store.clone(), self.path(name), range.clone());
        let doing = || format!("reading {}/{name}", self.location);
        let bytes = self.run(doing, name, async move { get(&*store, &path, asked).await })?;
        match range {
            Some(range) if bytes.len() as u64 != range.end - range.start => Err(StorageError::Corrupt {
                file: name.to_string(),
                place: format!(" (bytes {} to {})", range.start, range.end),
                reason: format!("it ends {} bytes after the first of these", bytes.len()),
            }),
            _ => Ok(bytes),
        }
    }

    fn get_all(&self, names: &[String]) -> Result<Vec<Bytes>, StorageError> {
        let (store, paths) = (self.store.clone(), names.iter().map(|name| self.path(name)).collect::<Vec<_>>());
        let first = names.first().map_or("", String::as_str);
        self.run(|| format!("reading {}/{first} and others", self.location), first, async move {
            let gets = paths.into_iter().map(|path| {
                let store = store.clone();
                async move { get(&*store, &path, None).await }
            });
            stream::iter(gets).buffered(AT_ONCE).try_collect().await
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<Blob>, StorageError> {
        let (store, path) = (self.store.clone(), self.path(folder));
        let doing = || format!("listing {}/{folder}", self.location);
        let found = self.run(doing, folder, async move { store.list(Some(&path)).try_collect::<Vec<_>>().await })?;
        let in_prefix = |object: object_store::ObjectMeta| {
            let parts: Vec<String> =
                object.location.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_string()).collect();
            (parts.len() == 2).then(|| Blob { name: parts.join("/"), bytes: object.size })
        };
        let mut blobs: Vec<Blob> = found.into_iter().filter_map(in_prefix).collect();
        blobs.sort();
        Ok(blobs)
    }

    fn top(&self) -> Result<Vec<String>, StorageError> {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let doing = || format!("listing {}", self.location);
        let found = self.run(doing, "", async move {
            store.list_with_delimiter((!prefix.as_ref().is_empty()).then_some(&prefix)).await
        })?;
        let paths = found.common_prefixes.into_iter().chain(found.objects.into_iter().map(|object| object.location));
        let mut names: Vec<String> =
            paths.filter_map(|path| Some(path.prefix_match(&self.prefix)?.next()?.as_ref().to_string())).collect();
        names.sort();
        Ok(names)
    }

    fn delete(&self, names: &[String]) -> Result<(), StorageError> {
        let (store, paths) = (self.store.clone(), names.iter().map(|name| Ok(self.path(name))).collect::<Vec<_>>());
        let first = names.first().map_or("", String::as_str);
        self.run(|| format!("deleting {}/{first} and others", self.location), first, async move {
            let mut deleted = store.delete_stream(stream::iter(paths).boxed());
            while let Some(outcome) = deleted.next().await {
                match outcome {
                    Ok(_) | Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_secrets_or_without_a_bucket_are_refused() {
        let refused = |scheme: &str, rest: &str| RemoteBlobs::at(scheme, rest).err().expect("refused").to_string();
        insta::assert_snapshot!(refused("s3", "key:hush@bucket/x"), @"s3://... is no place to keep data: credentials and options come from the environment, not from the URL");
        insta::assert_snapshot!(refused("s3", "bucket/x?secret=hush"), @"s3://... is no place to keep data: credentials and options come from the environment, not from the URL");
        insta::assert_snapshot!(refused("s3", "/x"), @"s3:///x is no place to keep data: it names no bucket");
        insta::assert_snapshot!(refused("ftp", "host/x"), @"ftp://host/x is no place to keep data: what is known are paths, file:///path, s3://bucket/prefix, gs://bucket/prefix and az://container/prefix");
    }

    #[test]
    fn answers_are_told_without_what_was_signed() {
        let check = |text: &str| scrubbed_of(text, ["hush".to_string(), String::new()].into_iter());
        let answer = "Generic S3 error: Error performing PUT http://h:1/b/k?sig=abc in 3ms - Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match.</Message><StringToSign>abc</StringToSign></Error>";
        insta::assert_snapshot!(check(answer), @"Generic S3 error: Error performing PUT http://h:1/b/k in 3ms - Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch: It does not match.");
        let answer = "403 Forbidden: \u{feff}<?xml version=\"1.0\"?>\n<Error><Code>AuthenticationFailed</Code><Message>No.\nRequestId:1</Message><AuthenticationErrorDetail>hush</AuthenticationErrorDetail></Error>";
        insta::assert_snapshot!(check(answer), @"403 Forbidden: AuthenticationFailed: No. RequestId:1");
        insta::assert_snapshot!(check("proxy http://me:pass@word@h:3128/x failed, said hush"), @"proxy http://h:3128/x failed, said ...");
        insta::assert_snapshot!(check("AZURITE_BLOB_STORAGE_URL=http://me:p@h:1?sig=abc, Error: no"), @"AZURITE_BLOB_STORAGE_URL=http://h:1 Error: no");
    }

    #[test]
    fn variables_with_secrets_are_known_by_all_their_names() {
        let secret = [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_TOKEN",
            "AWS_SSE_CUSTOMER_KEY_BASE64",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_ACCESS_KEY",
            "AZURE_STORAGE_MASTER_KEY",
            "AZURE_STORAGE_SAS_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_STORAGE_TOKEN",
            "AZURE_STORAGE_CLIENT_SECRET",
            "AZURE_CLIENT_SECRET",
            "AZURE_FABRIC_SESSION_TOKEN",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
        ];
        assert!(secret.iter().all(|name| is_secret(name)));
        let shown =
            ["AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_CLIENT_ID", "GOOGLE_BASE_URL", "HOME", "TOKEN"];
        assert!(!shown.iter().any(|name| is_secret(name)));
    }

    #[test]
    fn the_cause_of_an_error_is_told_once() {
        let refused = std::io::Error::other("refused");
        let error = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic { store: "S", source };
        insta::assert_snapshot!(with_cause(&error(Box::new(refused))), @"Generic S error: refused");
        #[derive(Debug, thiserror::Error)]
        #[error("no answer")]
        struct NoAnswer(#[source] std::io::Error);
        let error = error(Box::new(NoAnswer(std::io::Error::other("refused"))));
        insta::assert_snapshot!(with_cause(&error), @"Generic S error: no answer: refused");
    }

    fn in_memory() -> RemoteBlobs {
        let store = Arc::new(object_store::memory::InMemory::new());
        RemoteBlobs { store, prefix: Path::from("x"), location: "az://b/x".into() }
    }

    /// A server that overwrites whatever it was told.
    struct Careless(RemoteBlobs);

    impl Blobs for Careless {
        fn location(&self) -> String {
            self.0.location()
        }

        fn put(&self, name: &str, chunks: &[Bytes], _create_only: bool) -> Result<Put, StorageError> {
            self.0.put(name, chunks, false)
        }

        fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
            self.0.get(name, range)
        }

        fn list(&self, folder: &str) -> Result<Vec<Blob>, StorageError> {
            self.0.list(folder)
        }

        fn top(&self) -> Result<Vec<String>, StorageError> {
            self.0.top()
        }

        fn delete(&self, names: &[String]) -> Result<(), StorageError> {
            self.0.delete(names)
        }
    }

    #[test]
    fn a_server_that_overwrites_what_it_was_told_to_leave_is_refused() {
        let heeds = in_memory();
        assert_eq!((heeds.lock(), heeds.lock()), (Ok(()), Ok(())));
        let error = heeds_conditions(&Careless(in_memory())).expect_err("refused");
        insta::assert_snapshot!(error, @"az://b/x is no place to keep data: its server does not heed conditional puts (If-None-Match, or x-goog-if-generation-match on gs://), by which one process at a time writes");
    }

    #[test]
    fn what_a_cloud_answers_says_what_to_do() {
        let blobs = in_memory();
        let check = |text: &str| {
            let error = Error::Generic { store: "S", source: text.into() };
            let error = blobs.failed("listing az://b/x".into(), "log/1", error);
            format!("{}{error}", if error.is_retryable() { "" } else { "for ever: " })
        };
        let status = "Error performing list request: Server returned non-2xx status code:";
        insta::assert_snapshot!(check(&format!("{status} 403 Forbidden: <Error><Code>AuthenticationFailed</Code></Error>")), @"no permission: listing az://b/x: Generic S error: Error performing list request: Server returned non-2xx status code: 403 Forbidden: AuthenticationFailed");
        insta::assert_snapshot!(check(&format!("{status} 404 Not Found: <Error><Code>ContainerNotFound</Code></Error>")), @"for ever: az://b/x is no place to keep data: there is no such bucket");
        insta::assert_snapshot!(check(&format!("{status} 404 Not Found: <Error><Code>NoSuchBucket</Code></Error>")), @"for ever: az://b/x is no place to keep data: there is no such bucket");
        insta::assert_snapshot!(check(&format!("{status} 400 Bad Request: x")), @"listing az://b/x: Generic S error: Error performing list request: Server returned non-2xx status code: 400 Bad Request: x");
        insta::assert_snapshot!(check("Error performing token request: Server returned non-2xx status code: 400 Bad Request: invalid_grant"), @"no permission: listing az://b/x: Generic S error: Error performing token request: Server returned non-2xx status code: 400 Bad Request: invalid_grant");
        insta::assert_snapshot!(check("QuotaExceeded"), @"no space left: listing az://b/x: Generic S error: QuotaExceeded");
    }
}
