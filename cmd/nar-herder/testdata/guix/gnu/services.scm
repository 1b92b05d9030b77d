(define-module (gnu services)
  #:use-module (guix records)
  #:export (service-extension activation-service-type account-service-type))

(define-record-type* <service-type> service-type make-service-type service-type?
  (name service-type-name)
  (extensions service-type-extensions)
  (description service-type-description))
(export service-type service-type-extensions)

(define service-extension cons)
(define activation-service-type 'activation)
(define account-service-type 'account)
