(define-module (guix build-system go))
