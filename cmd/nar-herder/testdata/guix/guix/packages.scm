;;; The least of Guix's module that loads contrib/guix in a test: a package is its name.
(define-module (guix packages)
  #:export-syntax (package))

(define-syntax package
  (syntax-rules (inherit name)
    ((_ (inherit base) field ...) (package field ...))
    ((_ (name text) field ...) text)))
