;;; The least of Guix's module that loads contrib/guix in a test: a G-expression is an
;;; S-expression in which the values are inserted.
(define-module (guix gexp)
  #:export (file-append local-file))

(define (inserted character port)
  (if (eqv? (peek-char port) #\@)
      (begin (read-char port) (list 'unquote-splicing (read port)))
      (list 'unquote (read port))))

(read-hash-extend #\~ (lambda (character port) (list 'quasiquote (read port))))
(read-hash-extend #\$ inserted)
(read-hash-extend #\+ inserted)

(define (file-append object . suffix)
  (apply string-append "/gnu/store/" object suffix))

(define (local-file file . options) (string-append "/gnu/store/" file))
