;;; Packages of the tree that contains this file. See docs/guix.md.
(define-module (nar-herder-go package)
  #:use-module (gnu packages)
  #:use-module (guix build-system copy)
  #:use-module (guix build-system go)
  #:use-module (guix gexp)
  #:use-module ((guix licenses) #:prefix license:)
  #:use-module (guix packages)
  #:export (nar-herder-go
            nar-herder-go-binary))

(define %tree
  ;; The archive of 'scripts/release --source', or a checkout after 'go mod vendor': Guix builds
  ;; without a network, so the modules must be in "vendor".
  (local-file "../../.." "nar-herder-go-tree"
              #:recursive? #t
              #:select? (lambda (file stat)
                          (not (member (basename file) '(".git" "dist"))))))

(define %manuals
  ;; Files of "contrib", and where they are installed.
  '(("contrib/man/nar-herder.1" "share/man/man1/nar-herder.1")
    ("contrib/completions/nar-herder.bash" "share/bash-completion/completions/nar-herder")
    ("contrib/completions/_nar-herder" "share/zsh/site-functions/_nar-herder")
    ("contrib/completions/nar-herder.fish" "share/fish/vendor_completions.d/nar-herder.fish")))

(define nar-herder-go
  (package
    (name "nar-herder-go")
    (version "0.1.0")
    (source %tree)
    (build-system go-build-system)
    (arguments
     (list
      ;; Of the older versions that Guix also has, none compiles this program.
      #:go (specification->package "go@1.26")
      #:import-path "nar-herder"
      #:install-source? #f
      ;; The tests need other programs, such as nginx: 'scripts/test' runs them.
      #:tests? #f
      #:phases
      #~(modify-phases %standard-phases
          (replace 'build
            (lambda* (#:key outputs #:allow-other-keys)
              ;; The build system is made for packages without modules.
              (setenv "GO111MODULE" "on")
              (setenv "GOFLAGS" "-mod=vendor")
              (setenv "GOTOOLCHAIN" "local")
              (setenv "CGO_ENABLED" "0")
              (with-directory-excursion "src/nar-herder"
                (invoke "go" "build" "-trimpath" "-buildvcs=false"
                        "-ldflags=-s -w -buildid="
                        "-o" (string-append (assoc-ref outputs "out") "/bin/nar-herder")
                        "./cmd/nar-herder"))))
          (add-after 'install 'install-manuals
            (lambda* (#:key outputs #:allow-other-keys)
              (for-each (lambda (from to)
                          (let ((target (string-append (assoc-ref outputs "out") "/" to)))
                            (mkdir-p (dirname target))
                            (copy-file (string-append "src/nar-herder/" from) target)))
                        '#$(map car %manuals)
                        '#$(map cadr %manuals)))))))
    (home-page "https://git.savannah.gnu.org/cgit/guix/nar-herder.git/")
    (synopsis "Substitute server for GNU Guix")
    (description
     "Nar Herder keeps signed narinfos in an SQLite index and nars in a
directory or an S3 bucket, and serves both over HTTP.  It mirrors other
instances and caches other substitute servers.")
    (license license:agpl3+)))

;; The program of an archive that 'scripts/release' has made, which is static: it needs no Go.
(define nar-herder-go-binary
  (package
    (inherit nar-herder-go)
    (name "nar-herder-go-binary")
    (build-system copy-build-system)
    (arguments
     (list #:strip-binaries? #f
           #:validate-runpath? #f
           #:install-plan
           #~'(("nar-herder" "bin/nar-herder") #$@%manuals)))))

;; For 'guix build -f'.
nar-herder-go
