(define-module (gnu services shepherd)
  #:use-module (guix records)
  #:export (shepherd-root-service-type))

(define-record-type* <shepherd-service> shepherd-service make-shepherd-service shepherd-service?
  (documentation shepherd-service-documentation)
  (provision shepherd-service-provision)
  (requirement shepherd-service-requirement)
  (start shepherd-service-start)
  (stop shepherd-service-stop))
(export shepherd-service shepherd-service-requirement shepherd-service-start)

(define shepherd-root-service-type 'shepherd)
