(define-module (gnu packages))
