(define-module (gnu packages admin)
  #:export (shadow))
(define shadow "shadow")
