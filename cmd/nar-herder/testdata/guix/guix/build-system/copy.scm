(define-module (guix build-system copy))
