;;; The options of 'nar-herder run-server' as a record of Guix. Generated from the command line by
;;; 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this file.
(define-module (nar-herder-go configuration)
  #:use-module (guix records)
  #:use-module (nar-herder-go package)
  #:export (%options
            %cached-compression-level
            %cached-compression-options
            nar-herder-configuration
            nar-herder-configuration?
            nar-herder-configuration-package
            nar-herder-configuration-user
            nar-herder-configuration-group
            nar-herder-configuration-pid-file
            nar-herder-configuration-port
            nar-herder-configuration-host
            nar-herder-configuration-control-port
            nar-herder-configuration-control-host
            nar-herder-configuration-mirror
            nar-herder-configuration-database
            nar-herder-configuration-database-dump
            nar-herder-configuration-storage
            nar-herder-configuration-storage-limit
            nar-herder-configuration-storage-minimum-free-space
            nar-herder-configuration-storage-nar-removal-criteria
            nar-herder-configuration-ttl
            nar-herder-configuration-new-ttl
            nar-herder-configuration-negative-ttl
            nar-herder-configuration-log-level
            nar-herder-configuration-cached-compressions
            nar-herder-configuration-cached-compression-min-uses
            nar-herder-configuration-min-uses
            nar-herder-configuration-cached-compression-workers
            nar-herder-configuration-workers
            nar-herder-configuration-cached-compression-nar-source
            nar-herder-configuration-nar-source
            nar-herder-configuration-advertise
            nar-herder-configuration-x-accel-redirect
            nar-herder-configuration-trusted-proxies
            nar-herder-configuration-max-connections
            nar-herder-configuration-max-connections-per-address
            nar-herder-configuration-public-metrics
            nar-herder-configuration-tls-certificate
            nar-herder-configuration-tls-key
            nar-herder-configuration-tls-port
            nar-herder-configuration-tls-host
            nar-herder-configuration-storage-read-only
            nar-herder-configuration-serve-bucket-nars
            nar-herder-configuration-scrub-interval
            nar-herder-configuration-repair-from
            nar-herder-configuration-narinfo-cache-size
            nar-herder-configuration-storage-hard-limit
            nar-herder-configuration-storage-check-interval
            nar-herder-configuration-mirror-interval
            nar-herder-configuration-serve-remote-nars
            nar-herder-configuration-mirror-nars
            nar-herder-configuration-mirror-fetchers
            nar-herder-configuration-mirror-bandwidth
            nar-herder-configuration-allow-private-redirects
            nar-herder-configuration-upstream
            nar-herder-configuration-upstream-keep
            nar-herder-configuration-upstream-down
            nar-herder-configuration-storage-cache
            nar-herder-configuration-storage-cache-size
            nar-herder-configuration-database-dump-interval
            nar-herder-configuration-acl
            nar-herder-configuration-authorized-key
            nar-herder-configuration-mirror-key
            nar-herder-configuration-signing-key
            nar-herder-configuration-page
            nar-herder-configuration-title
            nar-herder-configuration-contact
            nar-herder-configuration-public-url
            nar-herder-configuration-log-format
            nar-herder-configuration-access-log
            nar-herder-configuration-extra-options
            nar-herder-configuration-extra-environment-variables
            nar-herder-configuration-shepherd-requirement
            nar-herder-configuration-log-file
            nar-herder-cached-compression-configuration
            nar-herder-cached-compression-configuration?
            nar-herder-cached-compression-configuration-type
            nar-herder-cached-compression-configuration-level
            nar-herder-cached-compression-configuration-workers
            nar-herder-cached-compression-configuration-directory
            nar-herder-cached-compression-configuration-directory-max-size
            nar-herder-cached-compression-configuration-unused-removal-duration
            nar-herder-cached-compression-configuration-ttl
            nar-herder-cached-compression-configuration-new-ttl))

(define-record-type* <nar-herder-configuration>
  nar-herder-configuration
  make-nar-herder-configuration
  nar-herder-configuration?
  ;; Package with the program.
  (package nar-herder-configuration-package (default nar-herder-go))
  ;; User and group of the server.
  (user nar-herder-configuration-user (default "nar-herder"))
  (group nar-herder-configuration-group (default "nar-herder"))
  ;; File to write the process id to, as soon as the server starts.
  (pid-file nar-herder-configuration-pid-file (default "/var/run/nar-herder/pid"))
  ;; Port to listen on.
  (port nar-herder-configuration-port (default 8734))
  ;; Name or address to listen on, or unix:PATH.
  (host nar-herder-configuration-host (default "127.0.0.1"))
  ;; Port of the control listener, which serves /metrics, /health, /debug/pprof/ and full
  ;; pages.
  (control-port nar-herder-configuration-control-port (default 8735))
  ;; Name or address of the control listener, or unix:PATH.
  (control-host nar-herder-configuration-control-host (default "127.0.0.1"))
  ;; Instance to mirror.
  (mirror nar-herder-configuration-mirror (default #f))
  ;; SQLite index.
  (database nar-herder-configuration-database (default "/var/lib/nar-herder/nar_herder.db"))
  ;; Dump of the index for other instances to download. Names of further files begin with this
  ;; one.
  (database-dump
   nar-herder-configuration-database-dump (default "/var/lib/nar-herder/nar_herder_dump.db"))
  ;; Directory or s3://BUCKET/PREFIX?... of the stored nars.
  (storage nar-herder-configuration-storage (default #f))
  ;; Remove nars to keep the storage below this size.
  (storage-limit nar-herder-configuration-storage-limit (default "none"))
  ;; Remove nars to keep this much free on the storage's file system, and refuse new ones below
  ;; it.
  (storage-minimum-free-space
   nar-herder-configuration-storage-minimum-free-space (default "none"))
  ;; Nars that may be removed to keep the limit: those that meet all conditions of one value.
  ;; Conditions are stored-on=URL, unused-for=DURATION, added-before=DAY-OR-DURATION,
  ;; tag=KEY=VALUE, no-tag=KEY=VALUE and unreferenced. May be repeated.
  (storage-nar-removal-criteria
   nar-herder-configuration-storage-nar-removal-criteria (default '()))
  ;; How long clients may cache a narinfo.
  (ttl nar-herder-configuration-ttl (default #f))
  ;; TTL to advertise instead of --ttl, while you change that.
  (new-ttl nar-herder-configuration-new-ttl (default #f))
  ;; How long clients may cache that an item does not exist.
  (negative-ttl nar-herder-configuration-negative-ttl (default #f))
  ;; Least level to log: DEBUG (includes requests), INFO, WARN or ERROR.
  (log-level nar-herder-configuration-log-level (default 'DEBUG))
  ;; List of nar-herder-cached-compression-configuration records.
  (cached-compressions nar-herder-configuration-cached-compressions (default '()))
  ;; Cache a nar after this many requests.
  (cached-compression-min-uses
   nar-herder-configuration-cached-compression-min-uses (default 3))
  ;; The name in the manual of Guix for cached-compression-min-uses.
  (min-uses nar-herder-configuration-min-uses (default #f))
  ;; Number of nars to compress at a time.
  (cached-compression-workers
   nar-herder-configuration-cached-compression-workers (default 2))
  ;; The name in the manual of Guix for cached-compression-workers.
  (workers nar-herder-configuration-workers (default #f))
  ;; Directory or URL to read the nars to compress from (default: the storage).
  (cached-compression-nar-source
   nar-herder-configuration-cached-compression-nar-source (default #f))
  ;; The name in the manual of Guix for cached-compression-nar-source.
  (nar-source nar-herder-configuration-nar-source (default #f))
  ;; Announce this server on the local network by DNS-SD, so that 'guix-daemon --discover'
  ;; finds it. --advertise=NAME sets its name (default: 'nar-herder on HOST').
  (advertise nar-herder-configuration-advertise (default #f))
  ;; Let nginx in front of this server send the nars, with X-Accel-Redirect as the original
  ;; does.
  (x-accel-redirect nar-herder-configuration-x-accel-redirect (default #f))
  ;; Proxies that may name the client in X-Forwarded-For, for the log and for limits:
  ;; addresses, networks, unix for a socket in the file system, or none. May be repeated
  ;; (default: 127.0.0.0/8,::1,unix).
  (trusted-proxies nar-herder-configuration-trusted-proxies (default '()))
  ;; Maximum number of open connections. At the limit, a new one closes the one that is idle
  ;; longest (default: a third of the limit of open files, at most 16384).
  (max-connections nar-herder-configuration-max-connections (default #f))
  ;; Maximum number of connections of one client address or IPv6 /64 network. Trusted proxies
  ;; and unix sockets are exempt (default: a quarter of --max-connections).
  (max-connections-per-address
   nar-herder-configuration-max-connections-per-address (default #f))
  ;; Whether to serve /metrics and /health to all clients too, and to show their figures on
  ;; pages (default: yes).
  (public-metrics nar-herder-configuration-public-metrics (default #f))
  ;; Certificate chain for HTTPS in PEM, with the server's own certificate first. It is
  ;; reloaded when the file changes.
  (tls-certificate nar-herder-configuration-tls-certificate (default #f))
  ;; Private key of --tls-certificate in PEM. It is reloaded when the file changes.
  (tls-key nar-herder-configuration-tls-key (default #f))
  ;; Port to listen on for HTTPS (default: no HTTPS).
  (tls-port nar-herder-configuration-tls-port (default #f))
  ;; Name or address to listen on for HTTPS (default: that of --host).
  (tls-host nar-herder-configuration-tls-host (default #f))
  ;; Never write to the storage or remove from it. This is for front ends, which share the
  ;; storage of another instance, usually that of --mirror.
  (storage-read-only nar-herder-configuration-storage-read-only (default #f))
  ;; How to serve nars in a bucket: stream them, or redirect clients to a presigned URL that is
  ;; valid for ten minutes (default: stream).
  (serve-bucket-nars nar-herder-configuration-serve-bucket-nars (default #f))
  ;; How often to verify all stored nars and all narinfos in the index, at a low rate, and
  ;; repair them, or none to leave that to 'nar-herder check' (default: 90d).
  (scrub-interval nar-herder-configuration-scrub-interval (default #f))
  ;; Instance to fetch damaged nars from, besides --mirror and those of stored-on criteria. May
  ;; be repeated.
  (repair-from nar-herder-configuration-repair-from (default '()))
  ;; Memory for recently requested narinfos (default: 64MiB).
  (narinfo-cache-size nar-herder-configuration-narinfo-cache-size (default #f))
  ;; Refuse new nars above this size, including imports (default: none).
  (storage-hard-limit nar-herder-configuration-storage-hard-limit (default #f))
  ;; How often to compare the storage with its limit (default: 60s).
  (storage-check-interval nar-herder-configuration-storage-check-interval (default #f))
  ;; How often to poll an original Nar Herder for changes. Other sources send theirs at once
  ;; (default: 60s).
  (mirror-interval nar-herder-configuration-mirror-interval (default #f))
  ;; How to serve nars that only another instance has: stream them, or redirect clients there
  ;; (default: stream).
  (serve-remote-nars nar-herder-configuration-serve-remote-nars (default #f))
  ;; Which nars of --mirror to store: all, those that clients request (on-demand), or none
  ;; (default: all).
  (mirror-nars nar-herder-configuration-mirror-nars (default #f))
  ;; Number of nars to fetch from --mirror at a time, not counting those that clients request
  ;; (default: 4).
  (mirror-fetchers nar-herder-configuration-mirror-fetchers (default #f))
  ;; Maximum bytes per second to fetch from --mirror, not counting what clients request
  ;; (default: none).
  (mirror-bandwidth nar-herder-configuration-mirror-bandwidth (default #f))
  ;; Follow redirects of other instances to any server, not only to themselves and to public
  ;; https addresses. For test networks.
  (allow-private-redirects nar-herder-configuration-allow-private-redirects (default #f))
  ;; Substitute server to cache, of any kind: https://HOST, or file:// with a directory. May be
  ;; repeated, in order of preference.
  (upstream nar-herder-configuration-upstream (default '()))
  ;; Forget items of upstreams that no client has requested for this long, or none (default:
  ;; none).
  (upstream-keep nar-herder-configuration-upstream-keep (default #f))
  ;; How to answer for unknown items while no upstream can be reached: with an error, or with a
  ;; 404 that clients cache for a minute (default: error).
  (upstream-down nar-herder-configuration-upstream-down (default #f))
  ;; Local directory that caches recently read nars of a remote storage.
  (storage-cache nar-herder-configuration-storage-cache (default #f))
  ;; Maximum size of --storage-cache on disk (default: 10GiB).
  (storage-cache-size nar-herder-configuration-storage-cache-size (default #f))
  ;; How often to write a new dump if the index has changed, or none to leave that to
  ;; 'nar-herder dump' (default: 1d).
  (database-dump-interval nar-herder-configuration-database-dump-interval (default #f))
  ;; List of authorized keys, such as Guix's /etc/guix/acl. Refuse narinfos that none of these
  ;; keys has signed. May be repeated.
  (acl nar-herder-configuration-acl (default '()))
  ;; Public key to authorize, such as signing-key.pub, in addition to those of --acl. May be
  ;; repeated.
  (authorized-key nar-herder-configuration-authorized-key (default '()))
  ;; Public key or list of keys of --mirror. Refuse narinfos from there that none of these keys
  ;; has signed. May be repeated (default: the keys of --acl and --authorized-key).
  (mirror-key nar-herder-configuration-mirror-key (default '()))
  ;; Public key of the narinfos' signatures, served at /signing-key.pub. May be repeated: the
  ;; second is served at /signing-key-2.pub.
  (signing-key nar-herder-configuration-signing-key (default '()))
  ;; Pages for browsers: all (full), only how to use this server and what it has (minimal), or
  ;; none (off) (default: full).
  (page nar-herder-configuration-page (default #f))
  ;; Name of this server on its pages.
  (title nar-herder-configuration-title (default #f))
  ;; Mail address, URL or text on the pages that says how to reach you.
  (contact nar-herder-configuration-contact (default #f))
  ;; URL at which clients reach this server, for the commands on its pages (default: the
  ;; address in the request).
  (public-url nar-herder-configuration-public-url (default #f))
  ;; Format of the log: text, or a JSON object per line (default: text).
  (log-format nar-herder-configuration-log-format (default #f))
  ;; Where to log each request, with its duration, bytes and client: stderr, or a file, which
  ;; is reopened at SIGHUP. The format is that of nginx and Apache named combined, followed by
  ;; range and seconds; or JSON with --log-format=json (default: off).
  (access-log nar-herder-configuration-access-log (default #f))
  ;; List of further arguments, as strings.
  (extra-options nar-herder-configuration-extra-options (default '()))
  ;; List of environment variables, such as "SSL_CERT_FILE=/etc/ssl/ca.pem".
  (extra-environment-variables
   nar-herder-configuration-extra-environment-variables (default '()))
  ;; List of further services of the Shepherd that the server needs, such as
  ;; file-system-/srv/nars.
  (shepherd-requirement nar-herder-configuration-shepherd-requirement (default '()))
  ;; File for the log of the server.
  (log-file nar-herder-configuration-log-file (default "/var/log/nar-herder/server.log")))

(define-record-type* <nar-herder-cached-compression-configuration>
  nar-herder-cached-compression-configuration
  make-nar-herder-cached-compression-configuration
  nar-herder-cached-compression-configuration?
  ;; Type of the compression, such as 'zstd.
  (type nar-herder-cached-compression-configuration-type)
  ;; Level of the compression. The manual of Guix calls the field workers.
  (level nar-herder-cached-compression-configuration-level (default #f))
  (workers nar-herder-cached-compression-configuration-workers (default #f))
  ;; Directory for cached nars of a type (default: /var/cache/nar-herder/nar/TYPE; with another
  ;; --database=NAME.db, NAME_cached/TYPE beside it).
  (directory nar-herder-cached-compression-configuration-directory (default #f))
  ;; Maximum size of that directory.
  (directory-max-size
   nar-herder-cached-compression-configuration-directory-max-size (default #f))
  ;; Remove cached nars that are not requested for this long.
  (unused-removal-duration
   nar-herder-cached-compression-configuration-unused-removal-duration (default #f))
  ;; TTL of narinfos that list a cached nar of this type.
  (ttl nar-herder-cached-compression-configuration-ttl (default #f))
  ;; TTL to advertise instead of --cached-compression-ttl, while you change that.
  (new-ttl nar-herder-cached-compression-configuration-new-ttl (default #f)))

(define %options
  ;; Options and what returns the value of each, in the order of the arguments. An entry named
  ;; "cached-compressions" stands for the options of all these records.
  (list
   (list "pid-file"
         nar-herder-configuration-pid-file)
   (list "port"
         nar-herder-configuration-port)
   (list "host"
         nar-herder-configuration-host)
   (list "control-port"
         nar-herder-configuration-control-port)
   (list "control-host"
         nar-herder-configuration-control-host)
   (list "mirror"
         nar-herder-configuration-mirror)
   (list "database"
         nar-herder-configuration-database)
   (list "database-dump"
         nar-herder-configuration-database-dump)
   (list "storage"
         nar-herder-configuration-storage)
   (list "storage-limit"
         nar-herder-configuration-storage-limit)
   (list "storage-minimum-free-space"
         nar-herder-configuration-storage-minimum-free-space)
   (list "storage-nar-removal-criteria"
         nar-herder-configuration-storage-nar-removal-criteria)
   (list "ttl"
         nar-herder-configuration-ttl)
   (list "new-ttl"
         nar-herder-configuration-new-ttl)
   (list "negative-ttl"
         nar-herder-configuration-negative-ttl)
   (list "log-level"
         nar-herder-configuration-log-level)
   (list "cached-compressions" nar-herder-configuration-cached-compressions)
   (list "cached-compression-min-uses"
         (lambda (config)
           (or (nar-herder-configuration-min-uses config)
               (nar-herder-configuration-cached-compression-min-uses config))))
   (list "cached-compression-workers"
         (lambda (config)
           (or (nar-herder-configuration-workers config)
               (nar-herder-configuration-cached-compression-workers config))))
   (list "cached-compression-nar-source"
         (lambda (config)
           (or (nar-herder-configuration-nar-source config)
               (nar-herder-configuration-cached-compression-nar-source config))))
   (list "advertise"
         nar-herder-configuration-advertise)
   (list "x-accel-redirect"
         nar-herder-configuration-x-accel-redirect)
   (list "trusted-proxies"
         nar-herder-configuration-trusted-proxies)
   (list "max-connections"
         nar-herder-configuration-max-connections)
   (list "max-connections-per-address"
         nar-herder-configuration-max-connections-per-address)
   (list "public-metrics"
         nar-herder-configuration-public-metrics)
   (list "tls-certificate"
         nar-herder-configuration-tls-certificate)
   (list "tls-key"
         nar-herder-configuration-tls-key)
   (list "tls-port"
         nar-herder-configuration-tls-port)
   (list "tls-host"
         nar-herder-configuration-tls-host)
   (list "storage-read-only"
         nar-herder-configuration-storage-read-only)
   (list "serve-bucket-nars"
         nar-herder-configuration-serve-bucket-nars)
   (list "scrub-interval"
         nar-herder-configuration-scrub-interval)
   (list "repair-from"
         nar-herder-configuration-repair-from)
   (list "narinfo-cache-size"
         nar-herder-configuration-narinfo-cache-size)
   (list "storage-hard-limit"
         nar-herder-configuration-storage-hard-limit)
   (list "storage-check-interval"
         nar-herder-configuration-storage-check-interval)
   (list "mirror-interval"
         nar-herder-configuration-mirror-interval)
   (list "serve-remote-nars"
         nar-herder-configuration-serve-remote-nars)
   (list "mirror-nars"
         nar-herder-configuration-mirror-nars)
   (list "mirror-fetchers"
         nar-herder-configuration-mirror-fetchers)
   (list "mirror-bandwidth"
         nar-herder-configuration-mirror-bandwidth)
   (list "allow-private-redirects"
         nar-herder-configuration-allow-private-redirects)
   (list "upstream"
         nar-herder-configuration-upstream)
   (list "upstream-keep"
         nar-herder-configuration-upstream-keep)
   (list "upstream-down"
         nar-herder-configuration-upstream-down)
   (list "storage-cache"
         nar-herder-configuration-storage-cache)
   (list "storage-cache-size"
         nar-herder-configuration-storage-cache-size)
   (list "database-dump-interval"
         nar-herder-configuration-database-dump-interval)
   (list "acl"
         nar-herder-configuration-acl)
   (list "authorized-key"
         nar-herder-configuration-authorized-key)
   (list "mirror-key"
         nar-herder-configuration-mirror-key)
   (list "signing-key"
         nar-herder-configuration-signing-key)
   (list "page"
         nar-herder-configuration-page)
   (list "title"
         nar-herder-configuration-title)
   (list "contact"
         nar-herder-configuration-contact)
   (list "public-url"
         nar-herder-configuration-public-url)
   (list "log-format"
         nar-herder-configuration-log-format)
   (list "access-log"
         nar-herder-configuration-access-log)))

(define (%cached-compression-level compression)
  (or (nar-herder-cached-compression-configuration-level compression)
      (nar-herder-cached-compression-configuration-workers compression)))

(define %cached-compression-options
  (list
   (list "cached-compression-directory"
         nar-herder-cached-compression-configuration-directory)
   (list "cached-compression-directory-max-size"
         nar-herder-cached-compression-configuration-directory-max-size)
   (list "cached-compression-unused-removal-duration"
         nar-herder-cached-compression-configuration-unused-removal-duration)
   (list "cached-compression-ttl"
         nar-herder-cached-compression-configuration-ttl)
   (list "cached-compression-new-ttl"
         nar-herder-cached-compression-configuration-new-ttl)))
