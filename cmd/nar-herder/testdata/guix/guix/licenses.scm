(define-module (guix licenses)
  #:export (agpl3+))
(define agpl3+ 'agpl3+)
