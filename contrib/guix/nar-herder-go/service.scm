;;; A service of Guix System with a field for each option of 'nar-herder run-server'. See
;;; docs/guix.md.
(define-module (nar-herder-go service)
  #:use-module (gnu packages admin)
  #:use-module (gnu services)
  #:use-module (gnu services shepherd)
  #:use-module (gnu system shadow)
  #:use-module (guix gexp)
  #:use-module (nar-herder-go configuration)
  #:use-module (srfi srfi-1)
  #:re-export (nar-herder-configuration
               nar-herder-configuration?
               nar-herder-cached-compression-configuration
               nar-herder-cached-compression-configuration?)
  #:export (nar-herder-service-type))

(define (text value)
  "Return VALUE as it is written on a command line, or #f for a file-like object."
  (cond ((string? value) value)
        ((number? value) (number->string value))
        ((symbol? value) (symbol->string value))
        ((pair? value) (string-append (text (car value)) "=" (text (cdr value))))
        (else #f)))

(define* (option name value #:optional (prefix ""))
  "Return the list of arguments that set the option NAME to VALUE: none for #f, a switch for #t,
one for each element of a list.  PREFIX precedes each value."
  (define start (string-append "--" name "=" prefix))
  (cond ((not value) '())
        ((eq? value #t) (list (string-append "--" name)))
        ((list? value) (append-map (lambda (element) (option name element prefix)) value))
        ((text value) => (lambda (string) (list (string-append start string))))
        (else (list #~(string-append #$start #$value)))))

(define (compression-arguments compression)
  (define type (text (nar-herder-cached-compression-configuration-type compression)))
  (define level (%cached-compression-level compression))
  (append
   (option "enable-cached-compression"
           (if level (string-append type ":" (text level)) type))
   (append-map (lambda (entry)
                 (option (car entry) ((cadr entry) compression) (string-append type "=")))
               %cached-compression-options)))

(define (arguments config)
  "Return the arguments of the program, as strings and gexps."
  (unless (or (nar-herder-configuration-mirror config)
              (nar-herder-configuration-storage config)
              (pair? (nar-herder-configuration-upstream config)))
    (error "nar-herder-configuration: set mirror, storage or upstream"))
  (append
   '("run-server")
   (append-map (lambda (entry)
                 (let ((value ((cadr entry) config)))
                   (if (string=? (car entry) "cached-compressions")
                       (append-map compression-arguments value)
                       (option (car entry) value))))
               %options)
   (nar-herder-configuration-extra-options config)))

(define (shepherd-services config)
  (list
   (shepherd-service
    (documentation "Serve substitutes.")
    (provision '(nar-herder))
    (requirement (append '(user-processes networking)
                         (nar-herder-configuration-shepherd-requirement config)))
    (start
     #~(make-forkexec-constructor
        (list #$(file-append (nar-herder-configuration-package config) "/bin/nar-herder")
              #$@(arguments config))
        #:user #$(nar-herder-configuration-user config)
        #:group #$(nar-herder-configuration-group config)
        #:directory "/var/lib/nar-herder"
        #:pid-file #$(nar-herder-configuration-pid-file config)
        #:log-file #$(nar-herder-configuration-log-file config)
        ;; Without this variable, the program finds no certificates for https.
        #:environment-variables
        (list "SSL_CERT_DIR=/etc/ssl/certs"
              #$@(nar-herder-configuration-extra-environment-variables config))))
    (stop #~(make-kill-destructor)))))

(define (activation config)
  ;; The storage is not created here: if it is missing, its file system may not be mounted.
  (define directories
    (delete-duplicates
     (append '("/var/lib/nar-herder" "/var/cache/nar-herder")
             (map dirname
                  (filter string?
                          (list (nar-herder-configuration-database config)
                                (nar-herder-configuration-database-dump config)
                                (nar-herder-configuration-pid-file config)))))))
  #~(begin
      (use-modules (guix build utils))
      (let ((user (getpwnam #$(nar-herder-configuration-user config)))
            (group (getgrnam #$(nar-herder-configuration-group config))))
        (for-each (lambda (directory)
                    ;; Leave directories as they are that exist already, such as /var/run.
                    (unless (file-exists? directory)
                      (mkdir-p directory)
                      (chown directory (passwd:uid user) (group:gid group))
                      ;; Members of the group can import.
                      (chmod directory #o2775)))
                  '#$directories)
        (mkdir-p #$(dirname (nar-herder-configuration-log-file config))))))

(define (accounts config)
  (list (user-group
         (name (nar-herder-configuration-group config))
         (system? #t))
        (user-account
         (name (nar-herder-configuration-user config))
         (group (nar-herder-configuration-group config))
         (system? #t)
         (comment "Nar Herder")
         (home-directory "/var/lib/nar-herder")
         (create-home-directory? #f)
         (shell (file-append shadow "/sbin/nologin")))))

(define nar-herder-service-type
  (service-type
   (name 'nar-herder)
   (extensions
    (list (service-extension shepherd-root-service-type shepherd-services)
          (service-extension activation-service-type activation)
          (service-extension account-service-type accounts)))
   (description "Serve substitutes with Nar Herder.")))
